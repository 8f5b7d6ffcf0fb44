"""Top-k, top-p and temperature against a float64 oracle."""

import jax
import numpy as np
import pytest
import scipy.special

from vqjax.samplers import filtering

filter_logits = jax.jit(filtering.filter_logits, static_argnums=(1, 2, 3))
top_k, top_p = (jax.jit(f, static_argnums=1) for f in (filtering.top_k, filtering.top_p))


def oracle_top_k(logits, k):
    """All but the classes with at least k larger ones are kept, so ties with the k-th stay."""
    if k == 0:
        return logits
    larger = (logits[..., None, :] > logits[..., :, None]).sum(-1)
    return np.where(larger < k, logits, -np.inf)


def oracle_top_p(logits, p):
    """Kept: classes whose strictly more likely ones have not reached p by themselves."""
    if p == 1:
        return logits
    out = np.full(logits.shape, -np.inf)
    for index in np.ndindex(logits.shape[:-1]):
        row = logits[index]
        probability = scipy.special.softmax(row)
        total, threshold = 0.0, -np.inf
        for value, q in sorted(zip(row, probability, strict=True), reverse=True):
            total, threshold = total + q, value
            if total >= p:
                break
        out[index] = np.where(row >= threshold, row, -np.inf)
    return out


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(0, 2, (3, 4, 20)).astype(np.float32)


@pytest.mark.parametrize("k", [0, 1, 2, 7, 19, 20, 50])
def test_top_k_equals_the_oracle(logits, k):
    np.testing.assert_array_equal(top_k(logits, k), oracle_top_k(logits, k))


def test_top_k_keeps_ties_with_the_last():
    kept = np.isfinite(top_k(np.array([1.0, 3.0, 2.0, 2.0, 0.0], np.float32), 2))
    np.testing.assert_array_equal(kept, [False, True, True, True, False])


@pytest.mark.parametrize("p", [1e-6, 0.5, 0.92, 0.999, 1.0])
def test_top_p_equals_the_oracle(logits, p):
    expected = oracle_top_p(logits.astype(np.float64), p)
    np.testing.assert_allclose(top_p(logits, p), expected, rtol=1e-6)


def test_top_p_takes_the_fewest_that_reach_p_and_ties_with_the_last():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.2, 0.1], np.float32))
    for p, kept in (
        (0.3, [0, 1, 0, 0, 0]),
        (0.41, [0, 1, 1, 1, 0]),
        (0.7, [0, 1, 1, 1, 0]),
        (0.85, [1, 1, 1, 1, 1]),
    ):
        np.testing.assert_array_equal(np.isfinite(top_p(logits, p)), np.array(kept, bool))


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [(0.3, 0, 1.0), (2.5, 5, 1.0), (0.3, 0, 0.8), (1.0, 5, 0.8), (2.5, 3, 0.3), (0.3, 15, 0.99)],
)
def test_temperature_then_top_k_then_top_p(logits, temperature, k, p):
    expected = oracle_top_p(oracle_top_k(logits.astype(np.float64) / temperature, k), p)
    filtered = filter_logits(logits, temperature, k, p)
    np.testing.assert_allclose(filtered, expected, rtol=1e-5)


@pytest.mark.parametrize(("k", "p"), [(1, 1.0), (0, 1e-9), (1, 1e-9)])
def test_the_most_likely_class_always_stays_even_when_certain(k, p):
    logits = np.array([[0.0, 200.0, -50.0], [3.0, 3.0, 3.0]], np.float32)
    kept = np.isfinite(filter_logits(logits, 0.1, k, p))
    np.testing.assert_array_equal(kept, [[False, True, False], [True, True, True]])


def test_uniform_logits_are_not_filtered():
    logits = np.zeros((2, 1024), np.float32)
    np.testing.assert_array_equal(filter_logits(logits, 1.0, 10, 0.5), logits)
