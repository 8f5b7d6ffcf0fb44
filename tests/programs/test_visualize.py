"""vqjax visualize: what stands where in its pictures, its numbers, what it refuses."""

import json
import re

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image
from test_command_line import error

from configs import common
from vqjax.data import build_source
from vqjax.generation.run import Run
from vqjax.priors.base import init_prior
from vqjax.report import comparison
from vqjax.runs.workdir import read_config, write_condition, write_config
from vqjax.tokens import Tokens

SIDE, FACTOR, GAP, HEADER = 16, 8, 4, 48


@pytest.fixture(scope="module")
def visualize():
    return command_runs._load("visualize")[0]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes runs of an untrained autoregressive prior on the trained tokenizer."""
    monkeypatch.setattr(Run, "prior_variables", property(prior_variables))

    def make(name, **changes):
        finished = tiny.finished_run()
        config = finished.config.copy_and_resolve_references()
        config.tokenizer.use_from = str(finished.workdir)
        config.prior = common.prior_stage("autoregressive")
        config.prior.model = ConfigDict({"name": "autoregressive"})
        config.prior.model.update({"dim": 8, "num_layers": 1, "num_heads": 2})
        config.sampling = common.sampling("autoregressive")
        config.update_from_flattened_dict(changes)
        write_config(config, tmp_path / name)
        write_condition(tmp_path / name, tiny.CONDITION)
        return tmp_path / name

    return make


def prior_variables(run):
    """Of each run others, and large enough for every dependence to show."""
    shapes = jax.eval_shape(lambda: init_prior(run.prior, 16, 1, jax.random.key(0)))
    rng = np.random.default_rng(len(run.workdir.name))
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)


def call(*workdirs, flags=()):
    named = ",".join(map(str, workdirs))
    assert command_runs.call("visualize", f"--workdir={named}", *flags) == 0


def cells(picture, columns):
    """The images of a picture by row and column, each pixel once."""
    step = SIDE * FACTOR + GAP
    body = np.asarray(Image.open(picture).convert("RGB"))[HEADER:]
    assert (body.shape[0] + GAP) % step == 0 and body.shape[1] + GAP == columns * step
    rows = (body.shape[0] + GAP) // step
    each = [
        [body[r * step :, c * step :][: SIDE * FACTOR, : SIDE * FACTOR] for c in range(columns)]
        for r in range(rows)
    ]
    return np.asarray(each)[:, :, ::FACTOR, ::FACTOR]


def test_rows_of_images_with_two_columns_a_run(make, capsys):
    workdirs = make("one"), make("the_other")
    call(*workdirs, flags=("--num_images=3",))
    said = capsys.readouterr().err
    images, *pairs = np.moveaxis(cells(workdirs[0] / "predictions.png", 5), 1, 0)
    source = build_source(read_config(workdirs[0]).data.source, "validation", SIDE)
    held_out = {
        np.asarray(x["image"]).tobytes(): x["label"] for x in map(source.__getitem__, range(7))
    }
    labels = [held_out[image.tobytes()] for image in images]
    assert len(set(labels)) > 1
    for workdir, rebuilt, predicted in zip(workdirs, pairs[::2], pairs[1::2], strict=True):
        run = Run(workdir, tiny.one_device())
        tokens = run.encode(images)
        np.testing.assert_array_equal(rebuilt, run.decode(tokens))
        condition = jnp.asarray(labels, jnp.int32)[:, None]
        logits = jax.jit(run.prior.apply)(run.prior_variables, tokens.codes, condition)
        likeliest = logits.argmax(-1)
        decoded = run.decode(Tokens.dense(likeliest.reshape(-1, 4, 4)))
        np.testing.assert_array_equal(predicted, decoded)
        error = ((rebuilt.astype(np.float64) - images) / 127.5) ** 2
        psnr = np.mean(10 * np.log10(4 / error.mean((1, 2, 3))))
        hits = np.mean(np.asarray(likeliest == tokens.codes))
        told = f"PSNR {psnr:.2f} dB, top-1 accuracy {100 * hits:.2f} %"
        assert re.search(rf"{workdir.name} +{re.escape(told)}", said), said
    assert (pairs[1] != pairs[3]).any() and (pairs[0] == pairs[2]).all()


def test_another_seed_shows_other_images(make):
    workdir = make("run")
    shown = []
    for seed in (0, 1, 2):
        call(workdir, flags=("--num_images=3", f"--seed={seed}"))
        shown.append(cells(workdir / "predictions.png", 3)[:, 0])
    assert (shown[0] != shown[1]).any(axis=(1, 2, 3)).all()
    # Of 7 images there are two threes.
    np.testing.assert_array_equal(shown[0], shown[2])


def write_curves(workdir, metrics):
    (workdir / "prior").mkdir(parents=True)
    lines = [
        {"step": step, **{f"validation/{name}": 5.0 / step + place}}
        for step in (5, 10, 20)
        for place, name in enumerate(metrics)
    ]
    text = "\n".join(map(json.dumps, lines))
    (workdir / "prior" / "metrics.jsonl").write_text(text)


def test_curves_are_of_a_metric_that_all_runs_have(make, monkeypatch, visualize, capsys):
    drawn = []
    monkeypatch.setattr(visualize, "curves_picture", lambda *args: drawn.append(args) or b"png")
    one, other = make("one"), make("other")
    write_curves(one, ["nats_per_token", "accuracy"])
    write_curves(other, ["accuracy", "nats_per_token"])
    call(one, other, flags=("--what=curves",))
    ((label, curves, trained),) = drawn
    assert trained == {}
    assert label == "held-out nats per token" and list(curves) == ["one", "other"]
    assert curves["one"] == ([5, 10, 20], [1.0, 0.5, 0.25]) and curves["other"][1][0] == 2.0
    assert (one / "curves.png").read_bytes() == b"png"
    assert "other: held-out nats_per_token 1.25 at step 20" in capsys.readouterr().err
    call(one, other, flags=("--what=curves", "--metric=accuracy", f"--out={other}/a.png"))
    assert drawn[1][0] == "held-out accuracy" and (other / "a.png").exists()
    with open(one / "prior" / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps({"step": 30, "train/accuracy": 0.5}))
    call(one, other, flags=("--what=curves", "--metric=accuracy"))
    assert drawn[2][0] == "accuracy" and drawn[2][2] == {"one": ([30], [0.5])}
    named = f"--workdir={one},{other}"
    said = error(capsys, "visualize", named, "--what=curves", "--metric=acuracy")
    assert "--metric=acuracy: did you mean 'accuracy'? valid: accuracy, nats_per_token" in said


def write_metrics(workdir, reconstruction, generation, images=100, suffix="", of="FD-lite1"):
    """What `vqjax evaluate` would leave."""
    entries = {}
    for kind, name, value in (
        ("reconstruction", f"r{of}", reconstruction),
        ("generation", of, generation),
    ):
        entries[f"{kind}{suffix}"] = {
            "metrics": {f"{name} at infinity": 0.0, name: value},
            "interval": {name: [value - 1, value + 1]},
            "by_count": {"metric": name},
            "protocol": {"sampler": {"images": images}, "tokenizer": {"weights": str(workdir)}},
        }
    (workdir / "evaluation").mkdir(exist_ok=True)
    (workdir / "evaluation" / "metrics.json").write_text(json.dumps(entries))


def with_alpha(make, name, alpha):
    """A run whose codes were trained with a semantic ratio."""
    trained = make(f"{name}_codes")
    config = read_config(trained)
    config.tokenizer.use_from = ""
    config.tokenizer.loss.semantic, config.tokenizer.loss.semantic_ratio = 1.0, alpha
    write_config(config, trained)
    # What its own config says of the loss is of no matter.
    return make(name, **{"tokenizer.use_from": str(trained)})


def test_both_distances_over_the_semantic_ratio(make, monkeypatch, visualize, capsys):
    drawn = []
    monkeypatch.setattr(visualize, "tradeoff_picture", lambda runs: drawn.append(runs) or b"png")
    one, other = with_alpha(make, "one", 1.0), with_alpha(make, "other", 0.25)
    named, flag = f"--workdir={one},{other}", "--what=alpha"
    write_metrics(one, 5.0, 7.0)
    said = error(capsys, "visualize", named, flag)
    for kind in ("reconstruction", "generation"):
        assert f"vqjax evaluate --workdir={other} --what={kind}" in said
    assert f"--workdir={one}" not in said
    write_metrics(other, 3.0, 9.0, of="FID")
    said = error(capsys, "visualize", named, flag)
    assert "(rFD-lite1 of one, rFID of other), whose distances cannot be compared" in said
    assert not drawn
    write_metrics(other, 3.0, 9.0, images=50)
    call(one, other, flags=(flag,))
    ((first, second),) = drawn
    assert first == comparison.Tradeoff(
        1.0,
        comparison.Distance("rFD-lite1", 5.0, (4.0, 6.0)),
        comparison.Distance("FD-lite1", 7.0, (6.0, 8.0)),
    )
    assert (second.alpha, second.reconstruction.value, second.generation.value) == (0.25, 3.0, 9.0)
    said = capsys.readouterr().err
    assert "one: alpha 1, rFD-lite1 5, FD-lite1 7" in said
    told = "other: its generation was not evaluated as that of one, so compare with care:"
    assert f"{told} sampler.images is 50, not 100\n" in said


def test_the_distances_are_of_the_decoder_that_is_named(make, monkeypatch, visualize, capsys):
    drawn = []
    monkeypatch.setattr(visualize, "tradeoff_picture", lambda runs: drawn.append(runs) or b"png")
    workdir = with_alpha(make, "run", 0.5)
    config = read_config(workdir)
    config.decoder = common.decoder_stage(config.tokenizer)
    write_config(config, workdir)
    write_metrics(workdir, 5.0, 7.0)
    flags = "--what=alpha", "--decoder=tokenizer"
    said = error(capsys, "visualize", f"--workdir={workdir}", *flags)
    assert f"vqjax evaluate --workdir={workdir} --what=generation --decoder=tokenizer" in said
    write_metrics(workdir, 6.0, 8.0, suffix=", decoder tokenizer")
    call(workdir, flags=flags)
    assert drawn[0][0].generation.value == 8.0


def test_runs_that_cannot_be_compared(make, tmp_path, capsys):
    one, finished = make("one"), tiny.finished_run().workdir

    def refused(other, *flags):
        return error(capsys, "visualize", f"--workdir={one},{other}", *flags)

    assert "has the prior 'multigrained', but an autoregressive one is needed" in refused(finished)
    larger = make("larger", **{"data.resolution": 32})
    assert f"{larger} has the resolution 32, {one} 16: only runs on the same" in refused(larger)
    images = tiny.write_images(tmp_path / "images")
    next((images / "validation").rglob("*.png")).unlink()
    fewer = make("fewer", **{"data.source.path": str(images)})
    assert f"{fewer} has the held-out images sha256" in refused(fewer)
    assert "loss.semantic=0, so its codes have no semantic" in refused(make("b"), "--what=alpha")
    assert "is written while train.py trains that stage" in refused(make("c"), "--what=curves")
    assert "a run is named twice" in refused(one)
    assert "folders of runs are needed, like runs/a,runs/b" in refused("")
    assert "--num_images=0: at least 1" in refused(finished, "--num_images=0")
    assert "it is for --what=curves; leave it out" in refused(finished, "--metric=accuracy")
    assert "predictions or alpha or importance" in refused(
        finished, "--what=curves", "--decoder=tokenizer"
    )
    assert "valid: tokenizer" in refused(finished, "--decoder=other")
    assert not list(tmp_path.rglob("predictions.png"))


def test_runs_of_one_name_are_told_apart_by_their_paths(visualize, monkeypatch):
    class Given:
        value = ("a/run", "b/run")

    monkeypatch.setattr(visualize, "WORKDIR", Given)
    assert visualize._names([*map(visualize.epath.Path, Given.value)]) == ["a/run", "b/run"]
    paths = [visualize.epath.Path(p) for p in ("a/one", "b/two")]
    assert visualize._names(paths) == ["one", "two"]
