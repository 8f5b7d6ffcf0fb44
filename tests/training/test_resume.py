"""A run that was stopped, killed or damaged ends exactly where an unbroken one does."""

import json
import logging
import os
import random
import shutil
import signal
import time

import command_runs
import jax
import numpy as np
import pytest
import tiny

from vqjax.errors import TrainingError
from vqjax.training import loop
from vqjax.training.console import ProgressBar

STAGES = ("tokenizer", "prior")


def assert_identical(a, b):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def logged_steps(workdir, stage):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    return [
        (line["step"], next(iter(line.keys() - {"step"})).split("/")[0])
        for line in map(json.loads, lines)
    ]


@pytest.fixture
def workdir(tmp_path):
    """A copy of the finished run."""
    shutil.copytree(tiny.finished_run().workdir, tmp_path / "run")
    return tmp_path / "run"


def test_state_has_all_that_training_changes():
    run = tiny.finished_run()
    stage = tiny.make_stage(run.config, "tokenizer", run.workdir)
    start = jax.jit(stage.init)(jax.random.key(0))
    end = tiny.final_state(run.config, "tokenizer", run.workdir)
    assert end.step == run.config.tokenizer.steps
    parts = ("params", "opt_state", "ema", "model_state")
    for network, part in [
        *(("model", part) for part in parts),
        *(("discriminator", part) for part in parts if part != "ema"),
    ]:
        before, after = (getattr(getattr(state, network), part) for state in (start, end))
        assert jax.tree.leaves(after), part
        assert any(
            not np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        ), part


@pytest.mark.parametrize("name", ["tokenizer", pytest.param("prior", marks=pytest.mark.slow)])
def test_stopped_by_sigterm(name, workdir, monkeypatch):
    run = tiny.finished_run()
    shutil.rmtree(workdir / name)

    def update(self, step, loss=None):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "update", update)
        with pytest.raises(TrainingError, match=r"stopped by a signal; step 5 is saved in .*same"):
            tiny.train(run.config, name, workdir)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert tiny.final_state(run.config, name, workdir).step == 5

    tiny.train(run.config, name, workdir)
    assert_identical(
        tiny.final_state(run.config, name, workdir),
        tiny.final_state(run.config, name, run.workdir),
    )
    assert logged_steps(workdir, name) == logged_steps(run.workdir, name)


def test_signal_in_the_last_step_is_not_lost(workdir, monkeypatch):
    """Otherwise the next stage would begin, in a process that was told to end."""
    run = tiny.finished_run()
    checkpoints = workdir / "tokenizer" / "checkpoints"
    shutil.rmtree(checkpoints / str(run.config.tokenizer.steps))
    evaluate = loop.evaluation_batches

    def evaluation_batches(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluation_batches", evaluation_batches)
    with pytest.raises(TrainingError, match="step 12 is saved"):
        tiny.train(run.config, "tokenizer", workdir)
    assert tiny.final_state(run.config, "tokenizer", workdir).step == 12


@pytest.mark.parametrize("name", STAGES)
def test_damaged_checkpoint(name, workdir, caplog):
    """Also of a stage that was finished: what comes after must not take an older one silently."""
    run = tiny.finished_run()
    for file in (workdir / name / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, logger="vqjax"):
        tiny.train(run.config, name, workdir)
    assert "checkpoint 12" in caplog.text
    assert "is damaged" in caplog.text
    assert "using 9 instead" in caplog.text
    assert_identical(
        tiny.final_state(run.config, name, workdir),
        tiny.final_state(run.config, name, run.workdir),
    )
    assert logged_steps(workdir, name) == logged_steps(run.workdir, name)


def test_finished_stage_is_skipped(workdir, caplog, monkeypatch):
    run = tiny.finished_run()
    before = tiny.contents(workdir)
    monkeypatch.setattr(loop, "jit_train_step", None)
    with caplog.at_level(logging.INFO, logger="vqjax"):
        for name in STAGES:
            tiny.train(run.config, name, workdir)
    assert "tokenizer: finished already (step 12)" in caplog.text
    assert "prior: finished already (step 12)" in caplog.text
    assert tiny.contents(workdir) == before


def test_tokenizer_is_not_changed_by_the_training_of_the_prior():
    run = tiny.finished_run()
    assert tiny.contents(run.workdir / "tokenizer") == run.tokenizer_files


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """The program itself, on four devices: killed in the one stage and in the other."""
    images, unbroken = command_runs.unbroken_run()
    workdir = tmp_path / "run"
    for name in STAGES:
        process = command_runs.start(images, workdir, devices=4)
        metrics = workdir / name / "metrics.jsonl"
        while not (metrics.exists() and '"step": 20,' in metrics.read_text()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not list((workdir / name / "checkpoints").glob(str(command_runs.STEPS)))
        process.stderr.close()
    command_runs.finish(command_runs.start(images, workdir, devices=4))

    config = tiny.get_config(f"path={images},steps={command_runs.STEPS}")
    for name in STAGES:
        assert_identical(
            tiny.final_state(config, name, workdir), tiny.final_state(config, name, unbroken)
        )
        assert logged_steps(workdir, name) == logged_steps(unbroken, name)
