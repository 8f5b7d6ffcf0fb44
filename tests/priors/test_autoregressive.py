"""The autoregressive prior: what each logit depends on, its losses, and that steps are its pass."""

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
    DIM,
    IMAGES,
    PADDING,
    condition_of,
    forward,
    log_softmax,
    make,
    nats_of,
    random_codes,
    tokens_of,
)

NAME = "autoregressive"


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_logit_depends_on_each_code_before_it_and_on_the_class_and_on_nothing_else(norm):
    prior, variables = make(NAME, num_ids=CLASSES, norm=norm)
    codes, condition = jnp.asarray(random_codes()[:1]), jnp.zeros((1, 1), jnp.int32)
    weights = np.random.default_rng(0).normal(size=CODES).astype(np.float32)

    @jax.jit
    def gradients(variables, shifts):
        def logits(shifts):
            def shift(call, args, kwargs, where):
                out = call(*args, **kwargs)
                is_embedding = where.method_name == "__call__" and where.module.name in shifts
                return out + shifts[where.module.name] if is_embedding else out

            with nn.intercept_methods(shift):
                return (prior.apply(variables, codes, condition) @ weights)[0]

        return jax.jacrev(logits)(shifts)

    shifts = {"code_embedding": jnp.zeros((CELLS - 1, DIM)), "ids": jnp.zeros((1, DIM))}
    moved = {name: np.any(g, axis=-1) for name, g in gradients(variables, shifts).items()}
    before = np.arange(CELLS)[:, None] > np.arange(CELLS - 1)
    np.testing.assert_array_equal(moved["code_embedding"], before)
    assert moved["ids"].all()


def test_positions_tell_cells_apart():
    prior, variables = make(NAME)
    logits = forward(prior, variables, np.full((1, CELLS), 2, np.int32), np.zeros((1, 0), np.int32))
    differences = np.abs(logits[0, :, None] - logits[0]).max(-1)
    assert (differences + np.eye(CELLS) > 1e-3).all()


@pytest.mark.parametrize("length", [0, 1, 3])
def test_steps_with_a_cache_equal_the_whole_pass(length):
    prior, variables = make(NAME, num_ids=CLASSES if length else 0)
    condition = np.array(condition_of(prior))
    if length == 3:
        condition = np.concatenate([condition, condition, condition], 1)
        condition[1, 1:] = condition[2] = PADDING
        variables = with_positions(variables, 3)
    codes = random_codes()

    @jax.jit
    def steps(variables, codes):
        given = jnp.asarray(condition)
        logits, cache = prior.apply(variables, given, method="begin")

        def step(cache, cell):
            call = codes[:, cell], cell, given, cache
            logits, cache = prior.apply(variables, *call, method="advance")
            return cache, logits

        _, others = jax.lax.scan(step, cache, jnp.arange(CELLS - 1))
        return jnp.concatenate([logits[None], others]).swapaxes(0, 1)

    expected = forward(prior, variables, codes, condition)
    np.testing.assert_allclose(steps(variables, codes), expected, rtol=1e-4, atol=1e-4)


def losses(prior, variables, codes, valid):
    @jax.jit
    def run(variables):
        key, tokens = jax.random.key(0), tokens_of(codes)

        def loss(train):
            call = variables, tokens, condition_of(prior), train
            return prior.apply(*call, method="loss", rngs={"dropout": key})

        call = variables, tokens, condition_of(prior), jnp.asarray(valid), key
        return loss(True), loss(False), prior.apply(*call, method="held_out")

    return jax.tree.map(np.asarray, run(variables))


def test_losses_are_those_of_the_oracle_smoothed_in_training_only():
    prior, variables = make(NAME, num_ids=CLASSES, label_smoothing=0.3)
    codes, valid = random_codes(), np.array([True, False, True, True, False])
    training, plain, held_out = losses(prior, variables, codes, valid)
    logits = forward(prior, variables, codes)
    hits = log_softmax(logits).argmax(-1) == codes
    for (loss, number, metrics), smoothing in ((training, 0.3), (plain, 0.0)):
        np.testing.assert_allclose(loss, nats_of(logits, codes, smoothing).mean(), rtol=1e-4)
        assert number == IMAGES * CELLS
        np.testing.assert_allclose(metrics["accuracy"], hits.mean(), rtol=1e-5)
        unsmoothed = nats_of(logits, codes).mean()
        np.testing.assert_allclose(metrics["nats_per_token"], unsmoothed, rtol=1e-4)
    nats, count = held_out["nats_per_token"]
    np.testing.assert_allclose(nats, nats_of(logits, codes)[valid].sum(), rtol=1e-4)
    assert count == valid.sum() * CELLS
    np.testing.assert_array_equal(held_out["accuracy"], [hits[valid].sum(), count])
