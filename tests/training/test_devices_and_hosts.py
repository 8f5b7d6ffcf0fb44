"""However the devices are split, and between however many processes, the run is the same."""

import functools
import json
import shutil
import socket

import command_runs
import jax
import numpy as np
import pytest
import tiny

from vqjax import parallel
from vqjax.data import build_source, train_batches
from vqjax.parallel import global_batch, make_mesh, placed, state_shardings
from vqjax.random_keys import random_key
from vqjax.training import loop

STEPS = 10
SPLITS = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 8},
    {"fsdp": 8},
]


@pytest.fixture
def everything_split(monkeypatch):
    """The tests' parameters are too small to be worth splitting: split them all the same."""
    split_all = functools.partial(state_shardings, fsdp_min_size=1)
    monkeypatch.setattr(parallel, "state_shardings", split_all)


def loss_curve(name, mesh):
    """The loss of the first steps, and along which axes of the mesh any parameter is split."""
    run = tiny.finished_run()
    config = run.config.copy_and_resolve_references()
    config[name].optimizer.eps = 1e-3
    # From the first step on; but two adversaries amplify what is only rounding: a weak adversary.
    discriminator = config.tokenizer.discriminator
    discriminator.start = discriminator.ramp = 0
    discriminator.weight, discriminator.optimizer.learning_rate = 0.05, 3e-4
    discriminator.optimizer.eps = 1e-3
    stage = tiny.make_stage(config, name, run.workdir)
    shapes = loop.abstract_state(stage, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    key = random_key(stage.seed, f"{name}/init", 0)
    state = jax.jit(stage.init, out_shardings=shardings)(key)
    frozen = stage.load_frozen(placed(stage.frozen_shapes(), mesh))
    step = loop.jit_train_step(stage, mesh)
    source = build_source(config.data.source, "train", 16)
    batches = train_batches(source, tiny.CONDITION, tiny.DATA, batch_size=8, seed=0, start_step=0)
    losses = []
    for _ in range(STEPS):
        batch = next(batches)
        state, metrics = step(state, frozen, global_batch(batch, mesh), stage.training_key)
        losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    batches.close()
    split = {
        axis
        for x in jax.tree.leaves(state.model.params)
        for axis in x.sharding.spec
        if axis is not None and mesh.shape[axis] > 1
    }
    return np.array(losses), split


@functools.cache
def reference(name):
    return loss_curve(name, tiny.one_device())[0]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_eight_devices_are_as_one(name, sizes, everything_split):
    losses, split = loss_curve(name, make_mesh(sizes))
    assert split == {axis for axis in ("fsdp", "tensor") if sizes.get(axis, 1) > 1}
    # Codes are drawn and compared in the same way, so that only the order of sums is different,
    # which two adversaries amplify; the loss itself changes by far more over these steps.
    tolerance = {"tokenizer": 2e-3, "prior": 2e-4}[name]
    np.testing.assert_allclose(losses, reference(name), rtol=tolerance)
    assert abs(losses[0, 0] - losses[-1, 0]) > 0.02 * losses[0, 0]


def run_by_two(images, workdir, *flags):
    """Runs train.py as two processes with two devices each; what each of them said."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags += (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    pair = [command_runs.start(images, workdir, 2, *flags, f"--process_id={i}") for i in range(2)]
    try:
        return [command_runs.finish(process) for process in pair]
    finally:
        for process in pair:
            process.kill()


@pytest.mark.slow
def test_two_processes_make_the_tokens_that_one_makes(tmp_path):
    """Of a prior that is trained from memory: each process makes a part, and has all."""
    finished = tiny.finished_run()
    images = finished.config.data.source.path
    flags = ("--config.stages=prior", "--config.data.crop=center", "--config.prior.steps=8")
    for name in ("one", "two"):
        shutil.copytree(finished.workdir / "tokenizer", tmp_path / name / "tokenizer")
    said = [command_runs.finish(command_runs.start(images, tmp_path / "one", 4, *flags))]
    said += run_by_two(images, tmp_path / "two", *flags)
    assert ["kept in memory" in text for text in said] == [True, True, False]
    one, two = (
        [json.loads(line) for line in (folder / "prior" / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    """The program itself on four devices, for both stages; only the main process writes."""
    images, single = command_runs.unbroken_run()
    said = run_by_two(images, tmp_path / "run")
    assert "prior: steps 0 to" in said[0]
    assert "prior: steps 0 to" not in said[1]

    config = tiny.get_config(f"path={images},steps={command_runs.STEPS}")
    for name in ("tokenizer", "prior"):
        lines = [
            [
                json.loads(line)
                for line in (folder / name / "metrics.jsonl").read_text().splitlines()
            ]
            for folder in (single, tmp_path / "run")
        ]
        # Two adversaries amplify what is only rounding.
        tolerance = {"tokenizer": {"rel": 1e-2, "abs": 5e-3}, "prior": {"rel": 1e-3, "abs": 1e-5}}
        for one, two in zip(*lines, strict=True):
            assert one == pytest.approx(two, **tolerance[name])
        one, two = (tiny.final_state(config, name, folder) for folder in (single, tmp_path / "run"))
        for (path, x), y in zip(
            jax.tree.leaves_with_path(one.model.params),
            jax.tree.leaves(two.model.params),
            strict=True,
        ):
            np.testing.assert_allclose(x, y, 1e-3, 1e-4, err_msg=jax.tree_util.keystr(path))
