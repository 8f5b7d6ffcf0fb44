"""The Frechet distance of evaluations in training: its value, and that it can choose."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_network
from ml_collections import ConfigDict

from vqjax.data import build_source, evaluation_batches
from vqjax.evaluation.metrics.frechet import fit, frechet_distance
from vqjax.parallel import global_batch, placed
from vqjax.training.frechet_monitor import FrechetMonitor, FrechetSettings

SETTINGS = FrechetSettings(images=6)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setattr("vqjax.training.frechet_monitor.build_network", tiny_network.build)


def to_float(images):
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def test_distance_is_that_of_the_first_valid_images():
    rng = np.random.default_rng(0)
    real, made = (rng.integers(0, 256, (12, 8, 8, 3), np.uint8) for _ in range(2))
    valid = np.array([True, True, False, True] * 3)
    monitor = FrechetMonitor(SETTINGS, prefix="r")
    for start in (0, 4, 8):
        if monitor.wants_more:
            part = slice(start, start + 4)
            monitor.add(to_float(real[part]), to_float(made[part]), valid[part])
    kept = np.flatnonzero(valid)[:6]
    expected = frechet_distance(*(fit(tiny_network.features(x[kept])) for x in (real, made)))
    assert monitor.metric == "rFD-lite1"
    assert monitor.distance() == {"rFD-lite1": pytest.approx(expected, rel=1e-3)}
    assert monitor.wants_more


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("tokenizer", "rFD-lite1"),
        pytest.param("prior", "FD-lite1", marks=pytest.mark.slow),
    ],
)
def test_stages_report_it(name, metric):
    run = tiny.finished_run()
    settings = run.config.copy_and_resolve_references()
    settings[name].frechet = ConfigDict(dataclasses.asdict(SETTINGS))
    # Samples are drawn in parts.
    settings.sampling.batch_size = 4
    stage = tiny.make_stage(settings, name, run.workdir)
    mesh = tiny.one_device()
    frozen = stage.load_frozen(placed(stage.frozen_shapes(), mesh))
    source = build_source(settings.data.source, "validation", 16)
    state = tiny.final_state(run.config, name, run.workdir)

    def evaluate():
        batches = evaluation_batches(source, tiny.CONDITION, tiny.DATA, batch_size=8)
        return stage.evaluate(state, frozen, batches, lambda batch: global_batch(batch, mesh))[0]

    metrics = evaluate()
    assert metrics[metric] > 0
    # All draws are fixed, so checkpoints are compared on the same noise.
    assert evaluate() == metrics
