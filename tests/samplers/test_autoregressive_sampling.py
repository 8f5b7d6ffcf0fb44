"""Sampling code by code with a cache: as without one, and known tokens stay."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from condition_positions import with_positions
from tiny_dense import (
    CELLS,
    CLASSES,
    CODES,
    GRID,
    IMAGES,
    NULL,
    PADDING,
    condition_of,
    forward,
    make,
    random_codes,
    random_known,
)

from vqjax.nn.transformer import MLP
from vqjax.samplers.autoregressive import AutoregressiveSampling, sample
from vqjax.samplers.filtering import filter_logits
from vqjax.tokens import Tokens

_filter = jax.jit(filter_logits, static_argnums=(1, 2, 3))


def sampled(prior, variables, known=None, seed=0, condition=None, **fields):
    given = known and Tokens(*jax.device_put((known[0], known[2])), GRID)
    condition = condition_of(prior) if condition is None else jnp.asarray(condition)
    settings = AutoregressiveSampling(**fields)
    key = jax.random.key(seed)
    return np.asarray(sample(prior, variables, key, condition, given, settings, GRID).codes)


@functools.partial(jax.jit, static_argnums=0)
def _categorical(seed, cell, logits):
    return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), cell), logits)


def reference(prior, variables, known=None, seed=0, condition=None, **fields):
    """A loop that computes the whole sequence anew for each code."""
    settings = AutoregressiveSampling(**fields)
    condition = condition_of(prior) if condition is None else condition
    # Those not yet drawn cannot be seen, whatever they are.
    codes = random_codes(seed=99)
    for cell in range(CELLS):
        logits = forward(prior, variables, codes, condition)[:, cell]
        if settings.guidance != 1:
            null = np.array(condition)
            null[:, 0], null[:, 1:] = NULL, PADDING
            without = forward(prior, variables, codes, null)[:, cell]
            weight = settings.guidance
            if settings.guidance_schedule == "linear":
                weight = 1 + (weight - 1) * cell / (CELLS - 1)
            logits = without + np.float32(weight) * (logits - without)
        logits = _filter(logits, settings.temperature, settings.top_k, settings.top_p)
        codes[:, cell] = _categorical(seed, cell, logits)
        if known is not None:
            codes[:, cell] = np.where(known[1][:, cell], known[0][:, cell], codes[:, cell])
    return codes


CASES = {
    "plain": ({}, {"temperature": 2.0}),
    "pre": ({"norm": "pre", "scan": False}, {"top_p": 0.95, "temperature": 2.0}),
    "class": ({"num_ids": CLASSES}, {"top_k": 3, "temperature": 2.0}),
    "guided": (
        {"num_ids": CLASSES, "condition_dropout": 0.1},
        {"guidance": 2.5, "guidance_schedule": "linear", "top_p": 0.95, "temperature": 3.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_loop_without_a_cache_token_for_token(case):
    model, settings = CASES[case]
    prior, variables = make("autoregressive", **model)
    known = random_known()
    for seed in range(2):
        drawn = sampled(prior, variables, known, seed, **settings)
        np.testing.assert_array_equal(drawn, reference(prior, variables, known, seed, **settings))
        np.testing.assert_array_equal(drawn[known[1]], known[0][known[1]])
        assert drawn.min() >= 0 and drawn.max() < CODES
    assert (drawn != sampled(prior, variables, known, seed + 1, **settings)).any()


def test_a_longer_condition_with_padding_is_that_of_the_loop_too():
    prior, variables = make("autoregressive", num_ids=CLASSES, condition_dropout=0.1)
    variables = with_positions(variables, 3)
    condition = np.array([[0, 1, 2], [3, PADDING, PADDING], [1, 1, PADDING], [2, 0, 0], [NULL] * 3])
    options = {"condition": condition.astype(np.int32), "guidance": 1.7}
    drawn = sampled(prior, variables, **options)
    np.testing.assert_array_equal(drawn, reference(prior, variables, **options))


def test_known_tokens_ahead_are_no_context():
    prior, variables = make("autoregressive")
    codes = random_codes()
    positions = np.full((IMAGES, CELLS), CELLS, np.int32)
    plain = sampled(prior, variables, (codes, None, positions))
    np.testing.assert_array_equal(plain, sampled(prior, variables))
    positions[:, 4] = 4
    ahead = sampled(prior, variables, (codes, None, positions))
    np.testing.assert_array_equal(ahead[:, :4], plain[:, :4])
    np.testing.assert_array_equal(ahead[:, 4], codes[:, 4])


def test_nothing_of_the_prefix_is_computed_again():
    prior, variables = make("autoregressive")
    lengths = []

    def record(call, args, kwargs, where):
        if isinstance(where.module, MLP):
            lengths.append(args[0].shape[1])
        return call(*args, **kwargs)

    # Settings of no other test, so that it is traced.
    with nn.intercept_methods(record):
        sampled(prior, variables, temperature=0.123)
    assert lengths and set(lengths) == {1}
