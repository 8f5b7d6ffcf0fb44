"""vqjax visualize of tokenizers with a mask: what they keep of images; and of codebooks."""

import functools
import re

import command_runs
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from test_command_line import error
from test_visualize import call, cells, visualize
from tiny_tokenizer import large_parameters

from vqjax.generation.run import Run
from vqjax.runs.workdir import write_config

__all__ = ["visualize"]


@functools.cache
def variables_of(model):
    return large_parameters(model, np.zeros((1, 16, 16, 3), np.float32))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes runs of untrained tokenizers with a mask, and without a prior."""

    def untrained(run):
        run.steps["tokenizer"] = 0
        return variables_of(run.tokenizer)

    monkeypatch.setattr(Run, "tokenizer_variables", property(untrained))

    def make(name, **fields):
        config = tiny.finished_run().config.copy_and_resolve_references()
        small = {"multipliers": (1, 2, 2), "num_res_blocks": 1, "attention_factors": (), "width": 6}
        quantizer = {"num_codes": 32, "code_dim": 8}
        config.tokenizer.model = ConfigDict(
            {"name": "mqvae", "latent_width": 16, "demask_blocks": 1, "quantizer": quantizer}
            | small
            | fields
        )
        config.condition.name, config.stages = "none", ("tokenizer",)
        del config.prior, config.sampling
        write_config(config, tmp_path / name)
        return tmp_path / name

    return make


def test_what_is_kept_is_seen_and_the_rest_is_grey(make, capsys):
    workdirs = make("quarter", mask_ratio=0.25), make("half", mask_ratio=0.5)
    call(*workdirs, flags=("--what=importance", "--num_images=3"))
    said = capsys.readouterr().err
    images, *columns = np.moveaxis(cells(workdirs[0] / "importance.png", 7), 1, 0)
    for workdir, number, kept in ((workdirs[0], 0, 12), (workdirs[1], 3, 8)):
        heat, shown, rebuilt = columns[number : number + 3]
        run = Run(workdir, tiny.one_device())
        tokens = run.encode(images)
        np.testing.assert_array_equal(rebuilt, run.decode(tokens))
        # Regions of 4x4 pixels.
        same = (shown == images).all(-1).reshape(3, 4, 4, 4, 4).all((2, 4)).reshape(3, 16)
        wanted = np.zeros((3, 16), bool)
        np.put_along_axis(wanted, np.asarray(tokens.positions), True, axis=1)
        np.testing.assert_array_equal(same, wanted)
        # The highest score is red, the lowest blue.
        scores = run.tokenizer.apply(
            run.tokenizer_variables,
            jnp.asarray(images / 127.5 - 1, jnp.float32),
            method="scores",
        )
        scores = np.asarray(scores).reshape(3, 16)
        redness = (heat[..., 0] - np.int32(heat[..., 2])).reshape(3, 4, 4, 4, 4).mean((2, 4))
        redness = redness.reshape(3, 16)
        rows = np.arange(3)
        assert (redness[rows, scores.argmax(1)] > 50).all()
        assert (redness[rows, scores.argmin(1)] < -50).all()
        assert re.search(rf"{workdir.name} +PSNR .* dB, {100 * kept / 16:g} % kept", said), said


def test_codes_of_each_run_lie_in_a_row(make, monkeypatch, visualize):
    drawn = []
    monkeypatch.setattr(visualize, "codebooks_picture", lambda found: drawn.append(found) or b"png")
    one, plain = make("one"), make("plain", mask="none", demask="none")
    call(one, plain, flags=("--what=codebooks",))
    assert list(drawn[0]) == ["one", "plain"]
    assert {vectors.shape for vectors in drawn[0].values()} == {(32, 8)}
    assert (one / "codebooks.png").read_bytes() == b"png"


def test_a_report_shows_what_is_kept(make):
    """Two pictures more for each image, where there is an adaptive mask."""
    for name, fields, pictures in (("one", {}, 4), ("any", {"mask": "random"}, 2)):
        workdir = make(name, **fields)
        assert command_runs.call("report", f"--workdir={workdir}", "--reconstructions=3") == 0
        page = (workdir / "report.html").read_text()
        section = page[page.index('<section id="reconstructions"') :]
        section = section[: section.index("</section>")]
        assert [figure.count("<img") for figure in section.split("<figure>")[1:]] == [pictures] * 3
        assert ("what the tokenizer holds to be important" in section) == (pictures == 4)


def test_tokenizers_that_score_nothing(make, capsys):
    for name, fields in (
        ("plain", {"mask": "none", "demask": "none"}),
        ("any", {"mask": "random"}),
    ):
        named = f"--workdir={make(name, **fields)}"
        said = error(capsys, "visualize", named, "--what=importance")
        assert "has a tokenizer without an adaptive mask" in said and "mask=adaptive" in said
