"""The masked prior: no leak of what is to be predicted, its rates, its losses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_dense import (
    CELLS,
    CLASSES,
    CODES,
    condition_of,
    forward,
    log_softmax,
    make,
    nats_of,
    random_codes,
    tokens_of,
)

from vqjax.priors.masked import MaskedPrior

MASK = CODES


def spied(prior, variables, codes, *, train=True, mask_ratio=None):
    """What `loss` gives, and the codes and the logits of its forward pass."""

    @jax.jit
    def run(variables, codes):
        calls = []

        def record(call, args, kwargs, where):
            out = call(*args, **kwargs)
            if isinstance(where.module, MaskedPrior) and where.method_name == "__call__":
                calls.append((args[0], out))
            return out

        condition = jnp.zeros((len(codes), 0), jnp.int32)
        call = variables, tokens_of(codes), condition, train
        rngs = {"mask": jax.random.key(0), "dropout": jax.random.key(1)}
        with nn.intercept_methods(record):
            out = prior.apply(*call, mask_ratio=mask_ratio, method="loss", rngs=rngs)
        (seen,) = calls
        return out, *seen

    return jax.tree.map(np.asarray, run(variables, codes))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_code_of_a_masked_token_reaches_nothing(norm):
    prior, variables = make("masked", norm=norm)
    codes = random_codes()
    _, seen, before = spied(prior, variables, codes)
    masked = seen == MASK
    assert masked.any(1).all() and not masked.all()
    np.testing.assert_array_equal(seen[~masked], codes[~masked])
    _, seen, after = spied(prior, variables, np.where(masked, (codes + 1) % CODES, codes))
    np.testing.assert_array_equal(after, before)


def test_the_code_of_any_other_token_reaches_every_logit():
    prior, variables = make("masked")
    codes = random_codes()
    _, seen, before = spied(prior, variables, codes, mask_ratio=0.5)
    for cell in range(CELLS):
        shown = seen[:, cell] != MASK
        changed = codes.copy()
        changed[:, cell] = (changed[:, cell] + 1) % CODES
        _, _, after = spied(prior, variables, changed, mask_ratio=0.5)
        moved = np.abs(after - before).max(-1)
        assert shown.any() and (moved[shown] > 1e-4).all() and (moved[~shown] == 0).all()


def test_the_class_reaches_every_logit():
    prior, variables = make("masked", num_ids=CLASSES)
    codes, labels = np.full((1, CELLS), MASK, np.int32), np.array([[[0]], [[1]]], np.int32)
    a, b = (forward(prior, variables, codes, label) for label in labels)
    assert (np.abs(a - b).max(-1) > 1e-3).all()


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.75, 1.0])
def test_a_given_part_of_each_image_is_masked_and_one_at_least(ratio):
    prior, variables = make("masked")
    (_, number, _), seen, _ = spied(prior, variables, random_codes(), mask_ratio=ratio)
    np.testing.assert_array_equal((seen == MASK).sum(1), max(np.ceil(ratio * CELLS), 1))
    assert number == (seen == MASK).sum()


@pytest.mark.parametrize(("schedule", "mean"), [("cosine", 2 / np.pi), ("linear", 0.5)])
def test_the_part_that_is_masked_is_drawn_by_the_schedule_for_each_image(schedule, mean):
    prior, variables = make("masked", mask_schedule=schedule)
    codes = np.zeros((4000, CELLS), np.int32)
    _, seen, _ = spied(prior, variables, codes)
    counts = (seen == MASK).sum(1)
    assert set(counts) == set(range(1, CELLS + 1))
    # Of ceil(r n): in the middle half a cell more.
    assert abs(counts.mean() / CELLS - mean - 0.5 / CELLS) < 0.03
    # All cells alike.
    share = (seen == MASK).mean(0)
    assert np.ptp(share) < 0.05


def test_losses_are_those_of_the_oracle_smoothed_in_training_only():
    prior, variables = make("masked", label_smoothing=0.3)
    codes = random_codes()
    for train, smoothing in ((True, 0.3), (False, 0.0)):
        (loss, number, metrics), seen, logits = spied(prior, variables, codes, train=train)
        masked = seen == MASK
        nats = nats_of(logits, codes, smoothing)[masked]
        np.testing.assert_allclose(loss, nats.mean(), rtol=1e-4)
        hits = log_softmax(logits).argmax(-1) == codes
        np.testing.assert_allclose(metrics["accuracy"], hits[masked].mean(), rtol=1e-5)
        assert number == masked.sum()


def test_held_out_losses_are_of_valid_images_at_fixed_rates():
    prior, variables = make("masked", num_ids=CLASSES, label_smoothing=0.3)
    codes, seen = random_codes(), []

    @jax.jit
    def held_out(variables, codes, valid, seed):
        def record(call, args, kwargs, where):
            out = call(*args, **kwargs)
            if isinstance(where.module, MaskedPrior) and where.method_name == "__call__":
                jax.debug.callback(lambda *x: seen.append(x), args[0], out, ordered=True)
            return out

        call = variables, tokens_of(codes), condition_of(prior), valid, jax.random.key(seed)
        with nn.intercept_methods(record):
            return prior.apply(*call, method="held_out")

    valid = np.array([True, True, False, True, False])
    sums = held_out(variables, codes, valid, 0)
    jax.effects_barrier()
    assert list(sums) == [f"loss_at_{ratio}" for ratio in (0.25, 0.5, 0.75, 1.0)]
    for ratio, (nats, number), (shown, logits) in zip(
        (0.25, 0.5, 0.75, 1.0), sums.values(), seen, strict=True
    ):
        masked = np.asarray(shown) == MASK
        np.testing.assert_array_equal(masked.sum(1), np.where(valid, np.ceil(ratio * CELLS), 0))
        expected = nats_of(np.asarray(logits), codes)[masked].sum()
        np.testing.assert_allclose(nats, expected, rtol=1e-4)
        assert number == masked.sum()
    again, other = held_out(variables, codes, valid, 0), held_out(variables, codes, valid, 1)
    assert again == sums and other["loss_at_0.5"] != sums["loss_at_0.5"]
