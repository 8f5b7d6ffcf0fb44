"""Kernel distance against a loop over pairs, and its lack of bias."""

from itertools import combinations

import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation.metrics.kernel_distance import kernel_distance


def features(seed, n, d=6, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, (n, d)).astype(np.float32)


def oracle(x, y):
    """The unbiased squared discrepancy, pair by pair."""

    def kernel(a, b):
        total = 0.0
        for i in range(len(a)):
            total += float(a[i]) * float(b[i])
        return (total / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(kernel(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def test_whole_sets_equal_the_oracle():
    x, y = features(0, 15), features(1, 15, mean=0.5)
    result = kernel_distance(x, y, subsets=3)
    np.testing.assert_allclose(result.mean, oracle(x, y), rtol=1e-10)
    # Every subset is all of the images: a spread of rounding.
    assert result.standard_deviation < 1e-12 and result.subset_size == 15


def test_mean_and_spread_are_over_subsets():
    x, y = features(2, 5), features(3, 4, mean=1.0)
    result = kernel_distance(x, y, subsets=1000, subset_size=3)
    values = [
        oracle(x[list(i)], y[list(j)])
        for i in combinations(range(5), 3)
        for j in combinations(range(4), 3)
    ]
    error = np.std(values) / np.sqrt(1000)
    assert abs(result.mean - np.mean(values)) < 5 * error
    np.testing.assert_allclose(result.standard_deviation, np.std(values), rtol=0.1)


def test_sets_of_one_distribution_are_at_zero_on_average_at_any_count():
    for n in (3, 30):
        means = [
            kernel_distance(features(10 + 2 * i, n), features(11 + 2 * i, n), 1).mean
            for i in range(300)
        ]
        error = np.std(means) / np.sqrt(len(means))
        assert abs(np.mean(means)) < 4 * error
        assert min(means) < 0
    far = kernel_distance(features(0, 30), features(1, 30, mean=1.0), 1).mean
    assert far > 10 * np.std(means)


def test_distance_grows_with_the_shift_and_is_symmetric():
    x = features(0, 200)
    distances = [
        kernel_distance(x, features(1, 200, mean=m), 5, 100).mean for m in (0, 0.3, 0.6, 1)
    ]
    assert np.all(np.diff(distances) > 0)
    y = features(1, 200, mean=0.5)
    forth, back = kernel_distance(x, y, 1, 200).mean, kernel_distance(y, x, 1, 200).mean
    np.testing.assert_allclose(forth, back, rtol=1e-10)


def test_draws_depend_on_the_seed_alone_and_a_mapped_file_gives_the_same_digits(tmp_path):
    x, y = features(0, 50), features(1, 70)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    first = kernel_distance(x, y, 4, 20, seed=5)
    assert kernel_distance(mapped, y, 4, 20, seed=5) == first
    assert kernel_distance(x, y, 4, 20, seed=6).mean != first.mean
    assert first.subset_size == 20 and first.standard_deviation > 0
    assert kernel_distance(x, y, 2).subset_size == 50


def test_large_features_keep_their_digits():
    # Kernels of 1e12: float32 would leave nothing of their difference.
    x, y = 1e4 + features(0, 12).astype(np.float64), 1e4 + features(1, 12, mean=1.0)
    np.testing.assert_allclose(kernel_distance(x, y, 1).mean, oracle(x, y), rtol=1e-3)


def test_bad_input_is_refused():
    x = features(0, 5)
    with pytest.raises(InputError, match="different networks"):
        kernel_distance(x, features(1, 5, d=7))
    with pytest.raises(InputError, match="at least 2"):
        kernel_distance(x, x[:1])
    with pytest.raises(InputError, match="at least 2"):
        kernel_distance(x, x, subset_size=1)
    with pytest.raises(InputError, match="subsets=0"):
        kernel_distance(x, x, subsets=0)
    broken = x.copy()
    broken[3, 2] = np.nan
    with pytest.raises(InputError, match="row 3 of the features"):
        kernel_distance(x, broken)
