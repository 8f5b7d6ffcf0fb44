"""Condition dropout in training, classifier-free guidance in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from condition_positions import with_positions
from tiny_prior import (
    BLOCKS,
    CLASSES,
    CODES,
    IMAGES,
    NULL,
    PADDING,
    forward,
    forward_inputs,
    make,
    random_codes,
    spec_of,
    spied_loss,
)
from tiny_sampler import BATCH, Watched, noise_logits, nothing_known, random_known

from vqjax.errors import FieldError
from vqjax.samplers.guidance import check_guidance, guided_logits
from vqjax.samplers.multigrained import MultiGrainedSampling

# Condition dropout


def test_condition_dropout_gives_whole_images_the_null_condition():
    length, rate, draws = 3, 0.3, 25
    null = [NULL, PADDING, PADDING]
    codes = random_codes()
    condition = np.random.default_rng(0).integers(0, CLASSES, (IMAGES, length)).astype(np.int32)
    prior, variables = make(num_ids=CLASSES, condition_dropout=rate)
    variables = with_positions(variables, length)
    options = {"condition": condition, "context": "random", "run": False}
    calls = [spied_loss(prior, variables, codes, seed=seed, **options) for seed in range(draws)]
    dropped = np.stack([(call.condition[:, 0] == null).all(1) for call in calls])
    for call, null_images in zip(calls, dropped, strict=True):
        expected = np.where(null_images[:, None, None], null, condition[:, None])
        np.testing.assert_array_equal(
            call.condition, np.broadcast_to(expected, (IMAGES, len(BLOCKS), length))
        )
    assert scipy.stats.binomtest(int(dropped.sum()), dropped.size, rate).pvalue > 0.01

    # The same masks as without, and no dropout where losses are held out.
    plain, _ = make(num_ids=CLASSES)
    without = spied_loss(plain, variables, codes, **options)
    np.testing.assert_array_equal(calls[0].window, without.window)
    held_out = spied_loss(prior, variables, codes, train=False, **options)
    np.testing.assert_array_equal(held_out.condition, without.condition)
    assert dropped[0].any() and (without.condition == condition[:, None]).all()


def test_a_longer_null_condition_is_the_null_class_and_nothing_else():
    prior, variables = make(num_ids=CLASSES)
    inputs = forward_inputs(prior)[:3]
    null = jax.jit(prior.null_condition)
    long, short = (null(np.zeros((len(BLOCKS), length), np.int32)) for length in (2, 1))
    np.testing.assert_array_equal(short, np.full((len(BLOCKS), 1), NULL))
    a = forward(prior, with_positions(variables, 2), *inputs, long)
    b = forward(prior, variables, *inputs, short)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Guidance


def test_guided_logits_are_the_formula_in_one_call_with_the_null_id():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(CLASSES + 2, CODES)).astype(np.float32)
    weights = rng.normal(size=(25, CODES)).astype(np.float32)
    condition = np.array([[2], [0], [4]], np.int32)
    window = rng.integers(0, CODES, (3, 25)).astype(np.int32)

    @jax.jit
    def run(rows, condition):
        calls = []

        def logits_of(codes, query, tokens, condition):
            """Linear in the condition's row and in the window, for two cells."""
            calls.append((query, condition))
            row = jnp.asarray(table)[condition[:, 0]]
            logits = row + codes.astype(jnp.float32) @ weights + tokens[:, 0, :1]
            return jnp.stack([logits, logits * query[:, None]], axis=1)

        null = jnp.full_like(condition, NULL)
        return guided_logits(logits_of, rows, null, condition, jnp.float32(2.5)), calls

    query = np.array([0, 1, 2], np.int32)
    tokens = rng.normal(size=(3, 6, 4)).astype(np.float32)
    logits, calls = jax.tree.map(np.asarray, run((window, query, tokens), condition))
    shared = window.astype(np.float64) @ weights.astype(np.float64) + tokens[:, 0, :1]
    given, without = table[np.array([2, 0, 4])].astype(np.float64), table[NULL].astype(np.float64)
    first = shared + without + 2.5 * (given - without)
    np.testing.assert_allclose(logits, np.stack([first, first * query[:, None]], 1), rtol=1e-4)
    assert len(calls) == 1
    for image in range(3):
        rows = calls[0][1][calls[0][0] == image, 0]
        assert sorted(rows) == sorted([NULL, int(condition[image, 0])])


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_weight_at_every_step(schedule):
    """Guided by w, the likeliest code k has its slope s_k nearest to w: the codes tell w."""
    slopes = np.linspace(0, 4, 401, dtype=np.float32)

    def logits_of(window, query, condition):
        null = jnp.asarray(-slopes * slopes / 2)
        logits = jnp.where(condition == NULL, null, null + slopes)
        return jnp.broadcast_to(logits[:, None], (*window.shape, len(slopes)))[:, :9]

    steps, guidance = 3, 3.6
    spec = spec_of(
        grid=(6, 9),
        mask_id=len(slopes),
        steps=steps,
        top_k=1,
        guidance=guidance,
        guidance_schedule=schedule,
    )
    condition = np.zeros((BATCH, 1), np.int32)
    watched = Watched(logits_of)
    codes, calls = watched.sample(*nothing_known(spec), spec, condition=condition)
    weights = slopes[codes]
    if schedule == "constant":
        np.testing.assert_allclose(weights, guidance, atol=0.02)
        return
    assert len(calls) == steps * len(BLOCKS)
    expected = [
        1 + (guidance - 1) * (block * steps + step) / (len(BLOCKS) * steps - 1)
        for block in range(len(BLOCKS))
        for step in range(steps)
    ]
    # Every step fixes some cells, so that each weight turns up, and no other.
    nearest = np.abs(weights[..., None] - expected)
    assert nearest.min(-1).max() < 0.02
    assert set(nearest.argmin(-1).ravel()) == set(range(len(expected)))


def test_guidance_of_one_is_no_guidance_and_costs_nothing():
    def logits_of(window, query, condition):
        return noise_logits(window, query, condition) + condition[..., None]

    watched = Watched(logits_of)
    condition = np.array([[0], [1], [2]], np.int32)
    known, mask = random_known(spec_of())
    plain, calls = watched.sample(known, mask, spec_of(steps=3), condition=condition)
    conditions = watched.conditions[:]
    for schedule in ("constant", "linear"):
        spec = spec_of(steps=3, guidance=1.0, guidance_schedule=schedule)
        codes, again = watched.sample(known, mask, spec, condition=condition)
        np.testing.assert_array_equal(codes, plain)
        assert [len(w) for w, _, _ in again] == [BATCH] * len(calls)
    for seen in conditions:
        np.testing.assert_array_equal(seen, condition)
    spec = spec_of(steps=3, guidance=2.0)
    _, doubled = watched.sample(known, mask, spec, condition=condition)
    assert [len(w) for w, _, _ in doubled] == [2 * BATCH] * len(calls)
    for seen in watched.conditions:
        np.testing.assert_array_equal(seen.reshape(BATCH, 2), [[NULL, c] for c in range(3)])


@pytest.mark.parametrize(
    ("fields", "settings", "expected"),
    [
        ({}, {"guidance": 2.0}, "guidance=2.0: this prior is unconditional"),
        ({"num_ids": CLASSES}, {"guidance": 2.0}, "has never seen the null condition"),
        ({}, {"guidance": -1.0}, "guidance=-1.0: 0 or more is needed"),
    ],
)
def test_guidance_that_cannot_be(fields, settings, expected):
    prior, _ = make(**fields)
    with pytest.raises(FieldError, match=expected):
        check_guidance(prior, MultiGrainedSampling(**settings))


def test_a_prior_that_knows_the_null_condition_may_be_guided():
    prior, _ = make(num_ids=CLASSES, condition_dropout=0.1)
    check_guidance(prior, MultiGrainedSampling(guidance=2.0))
