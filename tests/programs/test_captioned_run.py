"""A run that is told captions, through the programs: trained, sampled, edited, evaluated, shown."""

import json
import re

import command_runs
import numpy as np
import pytest
import tiny
import tiny_network
from PIL import Image
from test_command_line import error

from configs import common
from vqjax.data import build_source
from vqjax.evaluation.protocol import digest
from vqjax.generation.run import Run
from vqjax.runs.build import build_condition
from vqjax.runs.workdir import read_condition, write_condition, write_config

LENGTH = 8


def get_config(arg=""):
    """tiny's config with an autoregressive prior that is told captions; named as a config file."""
    args = common.parse_arg(arg, path="", captions="")
    config = tiny.get_config(f"path={args.path},steps=4")
    config.data.source.captions = args.captions
    config.condition = common.caption_condition()
    config.condition.length = LENGTH
    prior = common.prior_stage("autoregressive")
    for name in ("batch_size", "steps", "optimizer"):
        prior[name] = config.prior[name]
    prior.model.update({"dim": 8, "num_layers": 1, "num_heads": 2, "condition_dropout": 0.2})
    config.prior = prior
    config.sampling = common.sampling("autoregressive")
    return config


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """A file of captions of tiny's images: two of each."""
    root = tiny.finished_run().config.data.source.path
    source = tiny.get_config(f"path={root}").data.source
    names = [
        build_source(source, split, 16).name_of(i)
        for split, count in (("train", tiny.TRAIN_IMAGES), ("validation", tiny.VALIDATION_IMAGES))
        for i in range(count)
    ]
    file = tmp_path_factory.mktemp("captions") / "captions.tsv"
    shown = ((name, name.split("/")[1]) for name in names)
    lines = [f"{name}\t{text} {what}" for name, what in shown for text in ("some", "a few red")]
    file.write_text("\n".join(lines))
    return file


def arguments(captions):
    finished = tiny.finished_run()
    return f"path={finished.config.data.source.path},captions={captions}"


def training(captions, workdir, *flags):
    """The flags of train.py."""
    return (
        f"--config=tests/programs/test_captioned_run.py:{arguments(captions)}",
        f"--workdir={workdir}",
        f"--config.tokenizer.use_from={tiny.finished_run().workdir}",
        *flags,
    )


@pytest.fixture
def untrained(captions, tmp_path):
    """The folder of a run without weights."""
    config = get_config(arguments(captions))
    write_config(config, tmp_path / "run")
    source = build_source(config.data.source, "train", 16)
    write_condition(tmp_path / "run", build_condition(config, source))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--label=discs"],
            "--label=discs: this run is told a caption, not a label: give --captio",
        ),
        (["--caption="], "--caption='': an empty caption says nothing: write what is to be seen"),
        (
            [f"--caption={'some discs ' * 20}"],
            r"--caption='(some discs )+so\.\.\.': this caption has 40 tokens, and 8 fit into this",
        ),
        (["--edit=replace", "--image=@", "--box=0,0,4,4"], "needs --caption: what is to be in the"),
        (["--edit=inpaint", "--image=@", "--mask=@", "--label=1"], "--label=1: this run is told a"),
    ],
)
def test_what_cannot_be_told_is_one_line_before_any_model_is_loaded(
    flags, expected, untrained, tmp_path, capsys
):
    Image.new("RGB", (16, 16), "white").save(tmp_path / "white.png")
    flags = [flag.replace("@", f"{tmp_path}/white.png") for flag in flags]
    message = error(capsys, "sample", f"--workdir={untrained}", *flags)
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("flags", "more", "expected"),
    [
        (
            ["--config.condition.length=2"],
            "",
            "config.condition.length=2: the longest caption has 4",
        ),
        # Held-out images are looked at before anything is trained.
        (
            [],
            "validation/discs/001.png\t" + "red " * 9,
            "length=8: .* 9 tokens, 'red .*discs/001.png",
        ),
        ([], "train/discs/001.png\t ", "name='caption': train/discs/001.png has an empty caption"),
        (
            ["--config.condition.too_long=trim"],
            "",
            "config.condition.too_long='trim': .*cut, refus",
        ),
    ],
)
def test_captions_that_cannot_be_told_stop_a_training_before_it_begins(
    flags, more, expected, captions, tmp_path, capsys
):
    file = tmp_path / "captions.tsv"
    file.write_text(f"{captions.read_text()}\n{more}")
    message = error(capsys, "train", *training(file, tmp_path / "run", *flags))
    assert re.search(expected, message), message
    assert not (tmp_path / "run").exists()


def test_an_image_without_a_caption_is_named(captions, tmp_path, capsys):
    file = tmp_path / "captions.tsv"
    lines = captions.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("train/stripes/005")))
    message = error(capsys, "train", *training(file, tmp_path / "run"))
    assert re.search(r"train/stripes/005.png has no caption: give it one, or leave the im", message)


def told(file):
    return [line.split("\t")[1] for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_train_sample_edit_evaluate_and_show(captions, tmp_path, capsys, monkeypatch):
    workdir, out = tmp_path / "run", tmp_path / "samples"
    assert command_runs.call("train", *training(captions, workdir)) == 0
    # Going on, the condition is made again and is the same.
    assert command_runs.call("train", *training(captions, workdir)) == 0
    # From here on the captions are not needed, which were put away.
    condition, run = read_condition(workdir), f"--workdir={workdir}"
    asked = ["--caption=Some  Discs", "--num_images=2", "--guidance=2", f"--out={out}"]
    assert command_runs.call("sample", run, *asked) == 0
    assert told(out / "captions.tsv") == ["some discs"] * 2
    assert json.loads((out / "settings.json").read_text())["caption"] == "Some  Discs"
    drawn = Run(workdir).sample(2, caption="some discs", guidance=2.0)
    made = [np.asarray(Image.open(out / f"{i:05d}.png")) for i in range(2)]
    np.testing.assert_array_equal(made, drawn)

    assert command_runs.call("sample", run, "--num_images=5", f"--out={out}") == 0
    assert told(out / "captions.tsv") == [condition.shown[i % 3] for i in range(5)]

    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = ["--edit=inpaint", f"--image={out}/00000.png", f"--mask={tmp_path}/mask.png"]
    for more, texts in ([], [""] * 2), (["--caption=a few red stripes"], ["a few red stripes"] * 2):
        flags = [*edit, *more, "--num_images=2", f"--out={tmp_path / 'edited'}"]
        assert command_runs.call("sample", run, *flags) == 0
        assert told(tmp_path / "edited" / "captions.tsv") == texts

    module = command_runs._load("evaluate")[0]
    monkeypatch.setattr(module, "build_network", tiny_network.build)
    flags = ["--what=generation", "--num=10", "--batch_size=8", "--bootstrap=0"]
    assert command_runs.call("evaluate", run, *flags, "--reference=validation") == 0
    found = json.loads((workdir / "evaluation" / "metrics.json").read_text())["generation"]
    assert found["protocol"]["sampler"]["labels"] == "data"
    # The captions of the seven held-out images, in their order, and of the first ones again.
    order = np.random.default_rng(0).permutation(tiny.VALIDATION_IMAGES)
    source = build_source(get_config(arguments(captions)).data.source, "validation", 16)
    firsts = [source.captions_of(i)[0] for i in np.resize(order, 10).tolist()]
    expected = np.stack([condition.parse(text) for text in firsts])
    assert found["protocol"]["sampler"]["conditions"] == digest(expected)
    for flags, message in [
        (["--labels=balanced"], "--labels=balanced: this run's prior is told captions"),
        ([f"--reference={out}"], "told captions needs a reference with captions: a split of the"),
    ]:
        assert message in error(capsys, "evaluate", run, "--what=generation", "--num=10", *flags)

    assert command_runs.call("visualize", run, "--num_images=2", f"--out={tmp_path}/p.png") == 0
    command_runs._load("report")
    monkeypatch.setattr("vqjax.programs.report.build_network", tiny_network.build)
    assert command_runs.call("report", run, "--samples=6") == 0
    page = (workdir / "report.html").read_text()
    assert "caption-conditional" in page and f"<figcaption>{condition.shown[0]}" in page
