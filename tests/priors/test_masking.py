"""Mask schedules and random masks against float64 arithmetic and their distribution."""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats

from vqjax.priors import masking

masked_fraction = jax.jit(masking.masked_fraction, static_argnums=1)
mask_count = jax.jit(masking.mask_count)
random_mask = jax.jit(masking.random_mask)


@pytest.mark.parametrize(
    ("schedule", "exact"),
    [
        ("cosine", lambda r: np.cos(np.pi / 2 * r)),
        ("linear", lambda r: 1 - r),
        ("square", lambda r: 1 - r**2),
        ("cubic", lambda r: 1 - r**3),
        ("root", lambda r: 1 - np.sqrt(r)),
    ],
)
def test_schedules_fall_from_one_to_zero(schedule, exact):
    ratio = np.linspace(0, 1, 101, dtype=np.float32)
    fraction = np.asarray(masked_fraction(ratio, schedule))
    np.testing.assert_allclose(fraction, exact(ratio.astype(np.float64)), atol=1e-6)
    assert fraction[0] == 1 and fraction.min() >= 0
    assert (np.diff(fraction) < 0).all()


def test_mask_count_is_rounded_up():
    ratio = np.random.default_rng(0).uniform(size=(2000,))
    total = np.random.default_rng(1).integers(1, 257, size=(2000,))
    exact = np.cos(np.pi / 2 * ratio) * total
    # Nearer to an integer than float32 can tell, either neighbour is right.
    clear = np.abs(exact - np.round(exact)) > 1e-3
    assert clear.mean() > 0.9
    count = mask_count(masked_fraction(ratio.astype(np.float32), "cosine"), total)
    np.testing.assert_array_equal(np.asarray(count)[clear], np.ceil(exact)[clear])


def test_mask_count_of_whole_numbers_is_exact_in_spite_of_rounding():
    total = np.concatenate([np.full(n, n) for n in range(1, 257)])
    count = np.concatenate([np.arange(1, n + 1) for n in range(1, 257)])
    fraction = (count / total).astype(np.float32)
    np.testing.assert_array_equal(mask_count(fraction, total), count)


def test_mask_count_is_at_least_one_and_at_most_all():
    fraction = np.array([0.0, 1e-7, 1.0], np.float32)
    np.testing.assert_array_equal(mask_count(fraction, np.full(3, 64)), [1, 1, 64])


def test_random_mask_has_exactly_count_of_the_candidates_or_all_of_them():
    rng = np.random.default_rng(0)
    candidates = rng.uniform(size=(50, 4, 13)) < 0.6
    count = rng.integers(0, 14, size=(50, 4))
    mask = np.asarray(random_mask(jax.random.key(0), candidates, count))
    assert not (mask & ~candidates).any()
    np.testing.assert_array_equal(mask.sum(-1), np.minimum(count, candidates.sum(-1)))


def test_random_mask_is_uniform_over_all_subsets():
    candidates = np.array([1, 1, 0, 1, 1, 1, 0, 1, 0], bool)
    draws = 12_000
    mask = np.asarray(
        random_mask(
            jax.random.key(1),
            np.broadcast_to(candidates, (draws, 9)),
            np.full(draws, 3),
        )
    )
    subsets = list(itertools.combinations(np.flatnonzero(candidates), 3))
    weights = 2 ** np.arange(9)
    counts = [(mask @ weights == sum(2**i for i in subset)).sum() for subset in subsets]
    assert len(subsets) == math.comb(6, 3) and sum(counts) == draws
    assert scipy.stats.chisquare(counts).pvalue > 0.01
