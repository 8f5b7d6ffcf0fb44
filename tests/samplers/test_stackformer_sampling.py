"""Sampling of Stackformer with caches: as without, each position once, in raster order."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stackformer import (
    CELLS,
    CODES,
    GRID,
    IMAGES,
    NULL,
    PADDING,
    TOKENS,
    condition_of,
    forward,
    make,
    random_tokens,
    tokens_of,
)

from vqjax.errors import InputError
from vqjax.nn.transformer import MLP
from vqjax.samplers.filtering import filter_logits
from vqjax.samplers.stackformer import StackformerSampling, sample

_filter = jax.jit(filter_logits, static_argnums=(1, 2, 3))


def sampled(prior, variables, length, seed=0, known=None, **fields):
    """The codes and the positions."""
    key, settings = jax.random.key(seed), StackformerSampling(**fields)
    call = key, condition_of(length), known, settings, GRID
    tokens = sample(prior, variables, *call)
    assert tokens.grid == GRID
    return np.asarray(tokens.codes), np.asarray(tokens.positions)


@functools.partial(jax.jit, static_argnums=0)
def _categorical(seed, number, logits):
    return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), number), logits)


def reference(prior, variables, length, seed=0, **fields):
    """A loop that computes the whole sequence anew for each code and for each position."""
    s = StackformerSampling(**fields)
    condition = condition_of(length)
    # Those not yet drawn cannot be seen, whatever they are.
    codes, positions = random_tokens(seed=99)
    free = np.ones((IMAGES, CELLS), bool)

    def logits_of(which, index):
        logits = forward(prior, variables, codes, positions, condition)[which][:, index]
        if s.guidance == 1:
            return logits
        null = np.array(condition)
        null[:, 0], null[:, 1:] = NULL, PADDING
        without = forward(prior, variables, codes, positions, null)[which][:, index]
        weight = s.guidance
        if s.guidance_schedule == "linear":
            weight = 1 + (weight - 1) * index / (TOKENS - 1)
        return without + np.float32(weight) * (logits - without)

    for index in range(TOKENS):
        logits = _filter(logits_of(0, index), s.temperature, s.top_k, s.top_p)
        codes[:, index] = _categorical(seed, 2 * index, logits)
        logits = np.where(free, logits_of(1, index), -np.inf)
        if s.monotonic:
            for row, last in zip(logits, positions[:, index - 1], strict=True):
                row[: last + 1 if index else 0] = -np.inf
                row[CELLS - (TOKENS - 1 - index) :] = -np.inf
        logits = _filter(logits, s.position_temperature, s.position_top_k, s.position_top_p)
        positions[:, index] = _categorical(seed, 2 * index + 1, logits)
        free[np.arange(IMAGES), positions[:, index]] = False
    order = np.argsort(positions)
    return [np.take_along_axis(x, order, axis=1) for x in (codes, positions)]


CASES = {
    "plain": (0, {}, {"temperature": 2.0, "position_temperature": 3.0}),
    "filtered": (
        1,
        {"scan": False},
        {"top_k": 3, "top_p": 0.9, "position_top_k": 2, "position_top_p": 0.95},
    ),
    "monotonic": (1, {}, {"monotonic": True, "position_temperature": 3.0}),
    "guided": (
        3,
        {"condition_dropout": 0.1},
        {"guidance": 2.5, "guidance_schedule": "linear", "temperature": 3.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_loop_without_caches_token_for_token(case):
    length, model, settings = CASES[case]
    prior, variables = make(length, **model)
    drawn = [sampled(prior, variables, length, seed, **settings) for seed in range(2)]
    for seed, found in enumerate(drawn):
        expected = reference(prior, variables, length, seed, **settings)
        np.testing.assert_array_equal(found, expected)
        assert found[0].min() >= 0 and found[0].max() < CODES
        assert found[1].min() >= 0 and found[1].max() < CELLS
        assert (np.diff(found[1]) > 0).all()
    assert all((a != b).any() for a, b in zip(*drawn, strict=True))


def preferring(bias):
    """A prior to which positions are as likely as this says, whatever it sees."""
    prior, variables = make()
    head = variables["params"]["position_head"]
    linear = {"kernel": jnp.zeros_like(head["linear"]["kernel"]), "bias": jnp.asarray(bias)}
    params = {**variables["params"], "position_head": {**head, "linear": linear}}
    return prior, {"params": params}


def test_a_position_that_is_used_is_not_drawn_again():
    prior, variables = preferring(np.array([1e6, 0, 1e6, 0, 1e6, 0], np.float32))
    for seed in range(3):
        _, positions = sampled(prior, variables, 0, seed)
        assert (np.diff(positions) > 0).all()
        assert all({0, 2, 4} < set(row) for row in positions)


def test_monotonic_leaves_a_cell_for_every_token_that_is_to_come():
    """The likeliest cells are the last ones, and the next one is the likeliest of all that come."""
    likely = 100 * np.arange(CELLS, dtype=np.float32)
    options = {"monotonic": True, "position_top_k": 1}
    _, positions = sampled(*preferring(likely), 0, **options)
    np.testing.assert_array_equal(positions, [np.arange(CELLS - TOKENS, CELLS)] * IMAGES)
    # After cell 1, which is the likeliest, none before it, though cell 0 is the next likeliest.
    _, positions = sampled(*preferring(np.array([50, 100, 0, 0, 0, 0], np.float32)), 0, **options)
    np.testing.assert_array_equal(positions[:, 0], 1)


def test_nothing_of_the_prefix_is_computed_again():
    prior, variables = make()
    lengths = []

    def record(call, args, kwargs, where):
        if isinstance(where.module, MLP):
            lengths.append(args[0].shape[1])
        return call(*args, **kwargs)

    # Settings of no other test, so that it is traced.
    with nn.intercept_methods(record):
        sampled(prior, variables, 0, temperature=0.123)
    assert lengths and set(lengths) == {1}


def test_known_tokens_are_refused():
    with pytest.raises(InputError, match="none of them may be known"):
        sampled(*make(), 0, known=tokens_of(*random_tokens()))
