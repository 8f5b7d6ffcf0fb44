"""Parallel sampling of whole maps: how many codes each step fixes, from what, and by what rule."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_dense import (
    CELLS,
    CLASSES,
    CODES,
    GRID,
    IMAGES,
    NULL,
    condition_of,
    forward,
    make,
    random_codes,
    random_known,
)
from tiny_prior import schedule

from vqjax.priors.masked import MaskedPrior
from vqjax.samplers.confidence import choose
from vqjax.samplers.masked import MaskedSampling, sample
from vqjax.tokens import Tokens

MASK = CODES


class WatchedPrior(MaskedPrior):
    """A prior of made-up logits that shows what it is called with."""

    note: Callable = None

    def setup(self):
        """No parameters."""

    def __call__(self, codes, condition, train=False):
        jax.debug.callback(self.note, codes, ordered=True)
        cell, code = jnp.arange(CELLS)[:, None], jnp.arange(CODES)
        seed = jnp.sum(codes, axis=-1)[:, None, None]
        return 3 * jnp.sin(1.0 + seed + 2.3 * cell * code + 0.7 * code)


def run(prior, variables, known, seed=0, **fields):
    given = known and Tokens(*jax.device_put((known[0], known[2])), GRID)
    key, settings = jax.random.key(seed), MaskedSampling(**fields)
    call = (prior, variables, key, condition_of(prior), given, settings, GRID)
    return np.asarray(sample(*call).codes)


def watched(known, **fields):
    """The codes, and those that each step saw."""
    calls = []
    prior = WatchedPrior(CODES, GRID, scan=False, note=lambda codes: calls.append(codes))
    codes = run(prior, {}, known, **fields)
    jax.effects_barrier()
    return codes, [np.asarray(call) for call in calls]


@pytest.mark.parametrize("known", [None, random_known()], ids=["none", "some"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_exactly_the_scheduled_number_is_fixed_at_each_step(known, steps):
    codes, calls = watched(known, steps=steps)
    start = np.full(IMAGES, CELLS) if known is None else (~known[1]).sum(1)
    counts = np.array([schedule(unknown, steps) for unknown in start])
    # More steps than unknown tokens end early.
    assert len(calls) == np.count_nonzero(counts.max(0)) <= min(steps, CELLS)
    for step, (before, after) in enumerate(zip(calls, [*calls[1:], codes], strict=True)):
        np.testing.assert_array_equal((before == MASK).sum(1), counts[:, step])
        fixed = before != MASK
        np.testing.assert_array_equal(after[fixed], before[fixed])
    assert codes.min() >= 0 and codes.max() < CODES


def test_known_tokens_are_context_from_the_first_step_and_come_back_unchanged():
    known = random_known()
    codes, calls = watched(known, steps=3)
    np.testing.assert_array_equal(calls[0], np.where(known[1], known[0], MASK))
    np.testing.assert_array_equal(codes[known[1]], known[0][known[1]])
    # Nothing is left to be drawn.
    whole = random_codes(), None, np.broadcast_to(np.arange(CELLS, dtype=np.int32), (IMAGES, CELLS))
    codes, calls = watched(whole, steps=3)
    assert not calls
    np.testing.assert_array_equal(codes, whole[0])


_choose = jax.jit(choose, static_argnums=(5, 6, 7))


def reference(prior, variables, known, steps, seed=0, **fields):
    """The steps one by one."""
    settings = MaskedSampling(steps=steps, **fields)
    condition = np.asarray(condition_of(prior))
    codes = np.where(known[1], known[0], MASK)
    counts = np.array([schedule(unknown, steps) for unknown in (~known[1]).sum(1)])
    draw = settings.temperature, settings.top_k, settings.top_p
    for step in range(np.count_nonzero(counts.max(0))):
        logits = forward(prior, variables, codes, condition)
        if settings.guidance != 1:
            without = forward(prior, variables, codes, np.full_like(condition, NULL))
            weight = 1 + (settings.guidance - 1) * step / (steps - 1)
            logits = without + np.float32(weight) * (logits - without)
        noise = np.float32(settings.choice_temperature * (1 - (step + 1) / steps))
        key = jax.random.fold_in(jax.random.key(seed), step)
        left = counts[:, step + 1].astype(np.int32)
        drawn, fixed = _choose(key, logits, codes == MASK, left, noise, *draw)
        codes = np.where(fixed, drawn, codes)
    return codes


CASES = {
    "plain": ({}, {}),
    "guided": (
        {"num_ids": CLASSES, "condition_dropout": 0.1, "norm": "pre"},
        {"guidance": 2.5, "guidance_schedule": "linear", "top_p": 0.9, "temperature": 0.45},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_its_steps_one_by_one(case):
    model, settings = CASES[case]
    prior, variables = make("masked", **model)
    known, draw = random_known(), functools.partial(run, prior, variables)
    for seed in range(2):
        expected = reference(prior, variables, known, 3, seed, **settings)
        drawn = draw(known, seed, steps=3, **settings)
        np.testing.assert_array_equal(drawn, expected)
    assert (drawn != draw(known, seed + 1, steps=3, **settings)).any()
