"""What one step of block-by-block sampling fixes: how many tokens, which, and by what settings."""

import math

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_prior import CODES, schedule

from vqjax.errors import FieldError
from vqjax.samplers.confidence import choose, still_masked
from vqjax.samplers.multigrained import MultiGrainedSampling

_still_masked = jax.jit(still_masked, static_argnums=1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 12, 64])
def test_still_masked_equals_the_float64_schedule(steps):
    at_start = np.arange(1, 65)
    expected = np.array([schedule(n, steps) for n in at_start])
    now = at_start
    for step in range(steps):
        now = _still_masked(step, steps, at_start, now)
        np.testing.assert_array_equal(now, expected[:, step + 1])


def test_still_masked_fixes_one_where_the_schedule_would_none():
    kept = _still_masked(0, 100, np.array([5, 5, 5, 0]), np.array([5, 2, 1, 0]))
    np.testing.assert_array_equal(kept, [4, 1, 0, 0])


@pytest.mark.parametrize(
    ("schedule", "left"),
    [("linear", [36, 24, 12, 0]), ("square", [45, 36, 21, 0]), ("root", [24, 14, 6, 0])],
)
def test_other_schedules_leave_other_numbers(schedule, left):
    masked = jax.jit(still_masked, static_argnums=(1, 4))
    now, found = np.array([48]), []
    for step in range(4):
        now = masked(step, 4, np.array([48]), now, schedule)
        found.append(int(now[0]))
    assert found == left


_choose = jax.jit(choose, static_argnames=("temperature", "top_k", "top_p"))


def chosen(logits, unknown, keep, noise, **fields):
    """`choose` with numpy in and out."""
    settings = MultiGrainedSampling(**fields)
    draw = {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p")}
    arrays = logits, unknown, keep, np.float32(noise)
    return [np.asarray(x) for x in _choose(jax.random.key(0), *arrays, **draw)]


def test_choose_fixes_the_most_confident_of_the_unknown_cells():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40, 9, CODES)).astype(np.float32)
    unknown = rng.uniform(size=(40, 9)) < 0.7
    keep = rng.integers(0, np.maximum(unknown.sum(1), 1)).astype(np.int32)
    # Temperature and filters shape the draw; confidence is the model's own log-probability.
    drawn, fixed = chosen(logits, unknown, keep, 0.0, temperature=0.7, top_k=4)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    confidence = np.take_along_axis(log_p, drawn[..., None], -1)[..., 0]
    assert len(np.unique(drawn - logits.argmax(-1))) > 1
    for image in range(40):
        order = sorted(np.flatnonzero(unknown[image]), key=lambda cell: -confidence[image, cell])
        expected = np.isin(np.arange(9), order[: len(order) - keep[image]])
        np.testing.assert_array_equal(fixed[image], expected)


@pytest.mark.parametrize("noise", [0.0, 4.5, 1e6])
def test_choose_fixes_exactly_as_many_as_asked_and_only_unknown_cells(noise):
    rng = np.random.default_rng(1)
    logits = np.where(rng.uniform(size=(200, 9, CODES)) < 0.5, 0.0, -1e9).astype(np.float32)
    logits[:100] = 0.0  # every cell ties
    unknown = rng.uniform(size=(200, 9)) < 0.5
    keep = rng.integers(0, unknown.sum(1) + 1).astype(np.int32)
    _, fixed = chosen(logits, unknown, keep, noise)
    assert not (fixed & ~unknown).any()
    np.testing.assert_array_equal(fixed.sum(1), unknown.sum(1) - keep)


def test_the_choice_is_noisier_the_larger_its_gumbel_noise():
    # A cell that is surer by m goes first with odds e^(m/s) under Gumbel noise of scale s.
    logits = np.zeros((6000, 2, 2), np.float32)
    logits[:, 0, 0] = 60.0
    margin = math.log(2)  # log-probability 0 against -log 2
    for noise in (0.5, 1.0, 4.5):
        _, fixed = chosen(logits, np.ones((6000, 2), bool), np.ones(6000, np.int32), noise)
        first = fixed[:, 0].sum()
        odds = math.exp(margin / noise)
        assert scipy.stats.binomtest(int(first), 6000, odds / (1 + odds)).pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", (0, -1)),
        ("temperature", (0.0, -1.0, math.nan)),
        ("top_k", (-1,)),
        ("top_p", (0.0, 1.01, math.nan)),
        ("choice_temperature", (-0.1, math.nan, math.inf)),
    ],
)
def test_settings_out_of_their_range_are_named(name, values):
    for value in values:
        with pytest.raises(FieldError, match=f"^{name}={value}: .* is needed"):
            MultiGrainedSampling(**{name: value})
