"""Tokens that do not fill their grid, through all that a run is for: MQ-VAE and Stackformer."""

import json
import shutil

import command_runs
import numpy as np
import pytest
import test_every_pair as pairs
import tiny
import tiny_network

from vqjax.errors import InputError
from vqjax.generation.run import Run
from vqjax.samplers.rejection import Rejection

TOKENS = 12  # of 16 cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of an MQ-VAE and Stackformer that is told classes."""
    images, source = pairs.trained_tokenizer("mqvae")
    config = pairs.config_of(images, "mqvae", "stackformer", "class")
    folder = tmp_path_factory.mktemp("sparse") / "run"
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    pairs.train(config, "prior", folder)
    return folder


@pytest.fixture(scope="module")
def run(workdir):
    return Run(workdir, tiny.one_device())


def test_tokens_that_were_made_before_train_alike(workdir, run, tmp_path):
    """A batch of tokens has positions."""
    config = run.config.copy_and_resolve_references()
    config.tokenizer.use_from = str(workdir)
    config.data.crop, config.data.flip, config.prior.steps = "center", False, 4
    config.prior.optimizer.eps = 1e-3
    losses = {}
    for name, most in (("images", 0), ("tokens", 2**20)):
        config.prior.data.in_memory = most
        pairs.train(config, "prior", tmp_path / name)
        losses[name] = pairs.metrics_of(tmp_path / name, "prior")["train/loss"]
    assert losses["images"] == pytest.approx(losses["tokens"], rel=1e-4)


def test_rejection_keeps_the_tokens_of_the_best(run):
    conditions = run.conditions(4)
    sampler = run.sampler(8, run.sampling(batch_size=4), seed=3)
    rejection = Rejection(0.5, lambda images: images.mean((1, 2)), "confidence")
    twice = np.repeat(conditions, 2, axis=0)
    codes, positions, _ = map(
        np.concatenate, zip(*sampler.candidates(twice, rejection), strict=True)
    )
    assert codes.shape == positions.shape == (8, TOKENS)
    assert (np.diff(positions) > 0).all() and positions.max() < 16
    whole = np.concatenate(list(sampler.decoded(codes, positions)))
    np.testing.assert_array_equal(whole, np.concatenate(list(sampler.images(twice))))
    options = {"seed": 3, "rejection": rejection}
    best = np.concatenate(list(run.images(conditions, run.sampling(batch_size=4), **options)))
    assert len(best) == 4 and all(any((a == b).all() for b in whole) for a in best)


def test_it_cannot_edit_and_says_which_priors_can(workdir, run, tmp_path, capsys):
    message = "StackformerPrior .* cannot edit one; priors that can: autoregressive, masked, multi"
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=message):
        run.edit(picture, picture[..., 0] == 0)
    files = [tmp_path / name for name in ("image.png", "mask.png")]
    for file in files:
        tiny.Image.fromarray(picture).save(file)
    flags = f"--edit=inpaint --image={files[0]} --mask={files[1]} --label=discs".split()
    assert command_runs.call("sample", f"--workdir={workdir}", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "priors that can: autoregressive, masked, multigrained" in error
    assert command_runs.call("visualize", f"--workdir={workdir}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a code for every cell" in error and "MQVAE makes sparse tokens" in error


def test_sample_evaluate_report_and_describe(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = f"--workdir={workdir}"
    flags = ["--monotonic", "--position_temperature=0.7", "--position_top_p=0.9", "--num_images=3"]
    assert command_runs.call("sample", own, *flags, "--label=discs", f"--out={tmp_path}") == 0
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["monotonic"] and settings["position_temperature"] == 0.7

    module = command_runs._load("evaluate")[0]
    monkeypatch.setattr(module, "build_network", tiny_network.build)
    monkeypatch.setattr(
        "vqjax.programs.sampling_flags.imagenet_classifier", tiny_network.classifier
    )
    flags = ["--num=8", "--batch_size=8", "--bootstrap=0", "--score=confidence"]
    assert command_runs.call("evaluate", own, *flags, "--acceptance=0.5") == 0
    found = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert found["generation, acceptance 0.5"]["metrics"]["FD-lite1"] > 0
    assert found["reconstruction"]["metrics"]["codebook usage"] > 0

    command_runs._load("report")
    monkeypatch.setattr("vqjax.programs.report.build_network", tiny_network.build)
    assert command_runs.call("report", own) == 0
    page = (workdir / "report.html").read_text()
    assert "Codes and positions, nats a token" in page and "is not there" not in page
    # Of 7 held-out images.
    assert f"{7 * TOKENS} tokens" in page
    capsys.readouterr()
    assert command_runs.call("describe", own) == 0
    assert f"{TOKENS} tokens on 4x4" in capsys.readouterr().out
