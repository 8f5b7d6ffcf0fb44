"""sample.py: edits, guidance and rejection as a user asks for them."""

import json
import re

import command_runs
import numpy as np
import pytest
import scipy.special
import tiny
import tiny_network
from PIL import Image
from test_command_line import error

from vqjax.generation.run import Run
from vqjax.samplers.rejection import Rejection, candidate_groups

HEIGHT, WIDTH = 20, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures to edit with, in several modes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "image.png")
    Image.fromarray(pixels).save(folder / "transparent.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels[:19, :, :3]).save(folder / "odd.png")
    Image.fromarray(pixels[:4, :8, :3]).save(folder / "small.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    Image.fromarray(mask).save(folder / "black.png")
    mask[4:9, 6:11] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:, :-1]).save(folder / "narrow.png")
    (folder / "text.png").write_text("no image")
    return folder


def sample(folder, out, *flags):
    workdir = f"--workdir={tiny.finished_run().workdir}"
    flags = [flag.replace("@", f"{folder}/") for flag in flags]
    return command_runs.call("sample", workdir, f"--out={out}", "--num_images=3", *flags)


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("image", ["image.png", "grey.png"])
def test_inpainting(folder, tmp_path, image):
    flags = ["--edit=inpaint", f"--image=@{image}", "--mask=@mask.png", "--label=discs"]
    assert sample(folder, tmp_path, *flags) == 0
    original, hole = pixels(folder / image), pixels(folder / "mask.png")[..., 0] == 255
    edited = [pixels(tmp_path / f"{i:05d}.png") for i in range(3)]
    for result in edited:
        np.testing.assert_array_equal(result[~hole], original[~hole])
    assert any((result[hole] != original[hole]).any() for result in edited)
    assert json.loads((tmp_path / "settings.json").read_text())["edit"] == "inpaint"
    # Original, hole and three results, each enlarged five times, 4 pixels apart.
    assert pixels(tmp_path / "strip.png").shape == (5 * HEIGHT, 5 * (5 * WIDTH + 4) - 4, 3)


def test_outpainting_and_the_raw_decode(folder, tmp_path):
    flags = ["--edit=outpaint", "--image=@image.png", "--left=4", "--bottom=8", "--label=0"]
    for name, more in (("own", []), ("raw", ["--nocomposite"])):
        assert sample(folder, tmp_path / name, *flags, *more) == 0
    own, raw = (pixels(tmp_path / name / "00000.png") for name in ("own", "raw"))
    original = pixels(folder / "image.png")
    assert own.shape == raw.shape == (HEIGHT + 8, WIDTH + 4, 3)
    np.testing.assert_array_equal(own[:-8, 4:], original)
    assert (raw[:-8, 4:] != original).any()
    np.testing.assert_array_equal(own[-8:], raw[-8:])
    np.testing.assert_array_equal(own[:, :4], raw[:, :4])


def test_replacing_a_box(folder, tmp_path):
    flags = ["--edit=replace", "--image=@transparent.png", "--box=3,5,12,20", "--label=stripes"]
    assert sample(folder, tmp_path, *flags) == 0
    original = Image.open(folder / "transparent.png")
    white = Image.new("RGBA", original.size, "white")
    original = np.asarray(Image.alpha_composite(white, original).convert("RGB"))
    result = pixels(tmp_path / "00001.png")
    changed = np.argwhere((result != original).any(-1))
    assert len(changed) and (changed >= [5, 3]).all() and (changed < [20, 12]).all()


def test_the_decoder_that_is_named_paints(tmp_path):
    workdir = tiny.run_with_a_decoder(tmp_path / "run")
    own = [f"--workdir={workdir}", f"--out={tmp_path}", "--num_images=2", "--seed=3"]
    assert command_runs.call("sample", *own, "--decoder=tokenizer") == 0
    run = Run(tiny.finished_run().workdir)
    made = [pixels(tmp_path / f"{i:05d}.png") for i in range(2)]
    np.testing.assert_array_equal(made, run.sample(2, seed=3))
    assert json.loads((tmp_path / "settings.json").read_text())["decoder"] == "tokenizer"


def test_rejection(folder, tmp_path, monkeypatch):
    asked = []

    def classifier(name, weights):
        asked.append((name, weights))
        return tiny_network.classifier(name)

    monkeypatch.setattr("vqjax.programs.sampling_flags.imagenet_classifier", classifier)
    flags = ["--acceptance=0.5", "--score=confidence", "--classifier=efficientnet_lite1"]
    assert sample(folder, tmp_path, *flags) == 0
    assert asked == [("efficientnet_lite1", None)]
    assert sorted(f.name for f in tmp_path.glob("0*")) == [f"{i:05d}.png" for i in range(3)]


@pytest.mark.parametrize("by", ["label", "confidence"])
def test_the_best_candidates_of_each_class_are_kept_in_the_order_of_the_labels(by):
    def classify(images):
        """The mean of each colour: three classes."""
        return 20 * images.mean(axis=(1, 2))

    run = Run(tiny.finished_run().workdir, tiny.one_device())
    sampling = run.sampling(batch_size=4)
    labels = np.array([2, 0, 2, 1, 0], np.int32)
    rejection = Rejection(0.5, classify, by)
    batches = run.images(labels[:, None], sampling, rejection=rejection, seed=3)
    kept = np.concatenate(list(batches))
    assert kept.shape == (5, 16, 16, 3) and kept.dtype == np.uint8

    candidates = candidate_groups(labels, 0.5)
    images = np.concatenate(list(run.images(candidates[:, None], sampling, seed=3)))
    logits = 20 * (images / 127.5 - 1).mean(axis=(1, 2))
    log_p = scipy.special.log_softmax(logits, axis=-1)
    scores = log_p.max(1) if by == "confidence" else log_p[np.arange(10), candidates]
    for label in range(3):
        own = np.flatnonzero(candidates == label)
        best = np.sort(own[np.argsort(-scores[own])][: np.sum(labels == label)])
        np.testing.assert_array_equal(kept[labels == label], images[best])


INPAINT = ["--edit=inpaint", "--image=@image.png", "--mask=@mask.png", "--label=0"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([*INPAINT, "--mask=@narrow.png"], "mask has 23x20 pixels, but the image 24x20"),
        ([*INPAINT, "--mask=@black.png"], "there is nothing to fill"),
        ([*INPAINT, "--mask=@none.png"], "none.png: No such file"),
        ([*INPAINT, "--image=@text.png"], "text.png: not a readable image"),
        ([*INPAINT, "--image=@odd.png"], "24x19 pixels: f=4 has to divide both sides"),
        (
            [*INPAINT, "--image=@small.png"],
            "8x4 pixels is too small: the tokenizer",
        ),
        ([*INPAINT, "--box=0,0,4,4"], "--box goes with --edit=replace, and with nothing else"),
        ([*INPAINT, "--top=4"], "--top goes with --edit=outpaint, and with nothing else"),
        ([*INPAINT, "--label=3"], "--label=3: give a number from 0 to 2"),
        (["--caption=red"], "--caption=red: this run is told a label, not a caption: give --label"),
        (["--caption=", "--label=1"], "--label and --caption: a run is told one of the two"),
        ([*INPAINT, "--label="], "trained without condition_dropout, so editing needs --label"),
        (["--edit=inpaint", "--image=@image.png"], "needs --image and --mask"),
        (["--edit=inpaint", "--mask=@mask.png"], "needs --image and --mask"),
        (["--mask=@mask.png"], "--mask goes with --edit=inpaint, and with nothing else"),
        (["--image=@image.png"], "--image goes with --edit=inpaint or outpaint or replace"),
        (["--edit=outpaint", "--image=@image.png"], "--left or --right or --top or --bottom"),
        (["--edit=outpaint", "--image=@image.png", "--left=6"], "left=6: .* 4 or 8"),
        (["--edit=outpaint", "--image=@image.png", "--left=0"], "a number above 0"),
        (["--edit=replace", "--image=@image.png", "--box=0,0,4,4"], "needs --label"),
        (["--edit=replace", "--image=@image.png", "--label=0"], "needs --image and --box"),
        (
            ["--edit=replace", "--image=@image.png", "--box=0,0,25,4", "--label=0"],
            "box=0,0,25,4: in an image of 24x20 pixels, 0 <= x0 < x1 <= 24",
        ),
        (["--edit=replace", "--image=@image.png", "--box=0,0,4", "--label=0"], "x0,y0,x1,y1"),
        (["--edit=crop"], "edit"),
        (["--guidance=2"], "this prior has never seen the null condition"),
        (["--guidance_schedule=cosine"], "guidance_schedule"),
        (["--acceptance=0.5"], "--score=label is by .* ImageNet's 1000: this run has 3"),
        (["--acceptance=1.5", "--score=confidence"], "acceptance=1.5: the fraction"),
        (["--acceptance=0", "--score=confidence"], "acceptance=0.0: the fraction"),
        (["--decode_tile=6"], "tiles of 6 pixels"),
        (["--decoder=decoder"], "decoder=decoder: a stage of .* valid: tokenizer"),
    ],
    ids=lambda x: " ".join(x[-2:]) if isinstance(x, list) else "",
)
def test_one_line_before_any_model_is_loaded(flags, expected, folder, capsys, monkeypatch):
    def load_weights(*arguments):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("vqjax.generation.run.load_weights", load_weights)
    monkeypatch.setattr("vqjax.generation.run.load_tokenizer", load_weights)
    monkeypatch.setattr(
        "vqjax.programs.sampling_flags.imagenet_classifier", tiny_network.classifier
    )
    flags = [flag.replace("@", f"{folder}/") for flag in flags]
    message = error(capsys, "sample", f"--workdir={tiny.finished_run().workdir}", *flags)
    assert re.search(expected, message), message
