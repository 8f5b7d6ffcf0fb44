"""Fréchet distance against closed forms and an oracle; bias and error on known Gaussians."""

import numpy as np
import pytest
import scipy.linalg

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import (
    FrechetTo,
    Gaussian,
    bootstrap,
    counts_up_to,
    distance_by_count,
    fit,
    frechet_distance,
    rank_warning,
)


def gaussian(mean, covariance, count=None):
    return Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), count)


def random_covariance(rng, d, rank=None):
    factor = rng.normal(size=(d, d if rank is None else rank))
    return factor @ factor.T / d


def random_rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


class Recorder(np.ndarray):
    """An array that knows how many rows of it were asked for at a time."""

    most = 0

    def __getitem__(self, rows):
        part = super().__getitem__(rows)
        if isinstance(rows, slice | np.ndarray):
            Recorder.most = max(Recorder.most, len(part))
        return part


@pytest.mark.parametrize("zeros", [0, 3, 6])
def test_commuting_covariances_have_the_closed_form(zeros):
    rng = np.random.default_rng(0)
    basis = random_rotation(rng, 6)
    a, b = rng.uniform(0.1, 3, (2, 6))
    a[:zeros], b[2 : 2 + zeros] = 0, 0
    mean = rng.normal(size=(2, 6))
    ours = frechet_distance(
        gaussian(mean[0], (basis * a) @ basis.T), gaussian(mean[1], (basis * b) @ basis.T)
    )
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2) + np.sum((mean[0] - mean[1]) ** 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-7)


@pytest.mark.parametrize("rank", [1, 2])
def test_two_dimensions_have_the_closed_form_without_commuting(rank):
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = random_covariance(rng, 2, rank), random_covariance(rng, 2)
        # The trace of the root of a 2x2 matrix from its trace and determinant.
        determinant = max(np.linalg.det(a @ b), 0)
        root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(determinant))
        expected = np.trace(a) + np.trace(b) - 2 * root
        ours = frechet_distance(gaussian(np.zeros(2), a), gaussian(np.zeros(2), b))
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_general_covariances_equal_the_oracle_in_both_orders():
    rng = np.random.default_rng(2)
    a, b = (gaussian(rng.normal(size=12), random_covariance(rng, 12)) for _ in range(2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-10)


def test_singular_covariances_on_both_sides_are_finite_and_symmetric():
    rng = np.random.default_rng(3)
    a, b = (gaussian(rng.normal(size=10), random_covariance(rng, 10, rank=4)) for _ in range(2))
    forth, back = frechet_distance(a, b), frechet_distance(b, a)
    assert np.isfinite(forth) and forth > 0
    np.testing.assert_allclose(forth, back, rtol=1e-6)
    # The covariances alone are two factors' distance: that of their nuclear norm.
    with_point = frechet_distance(a, gaussian(b.mean, np.zeros((10, 10))))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance)
    np.testing.assert_allclose(with_point, expected, rtol=1e-12)


@pytest.mark.parametrize("n", [12, 40])
def test_invariance_under_rotation_and_shift(n):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(n, 16)), rng.normal(0.5, 2, size=(50, 16))
    rotation, shift = random_rotation(rng, 16), rng.normal(0, 100, 16)
    distance = FrechetTo(fit(y)).samples(x)
    moved = FrechetTo(fit(y @ rotation + shift)).samples(x @ rotation + shift)
    np.testing.assert_allclose(moved, distance, rtol=1e-8)
    # And twice the features are four times the distance.
    np.testing.assert_allclose(FrechetTo(fit(2 * y)).samples(2 * x), 4 * distance, rtol=1e-8)


@pytest.mark.parametrize("n", [5, 20, 200])
def test_a_set_is_at_no_distance_from_itself(n):
    x = np.random.default_rng(5).normal(3, 2, (n, 20)).astype(np.float32)
    own = fit(x)
    scale = np.trace(own.covariance)
    assert 0 <= frechet_distance(own, own) < 1e-6 * scale
    assert 0 <= FrechetTo(own).samples(x) < 1e-6 * scale
    assert FrechetTo(own).samples(x + 1) > 19


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_moments_are_the_definition_whatever_the_chunk(offset, chunk):
    x = offset + np.random.default_rng(6).normal(size=(50, 4)) * [1, 2, 3, 1e-3]
    fitted = fit(x, chunk=chunk)
    assert fitted.count == 50
    np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-13, atol=1e-15)
    exact = x - offset
    expected = (exact - exact.mean(0)).T @ (exact - exact.mean(0)) / 49
    # What is lost is the offset's own rounding.
    np.testing.assert_allclose(fitted.covariance, expected, rtol=1e-12, atol=1e-15 + offset * 1e-15)


def test_sorted_features_lose_nothing():
    # The first chunk says nothing about the rest.
    x = np.sort(np.random.default_rng(7).normal(0, 1e4, (300, 2)), axis=0)
    np.testing.assert_allclose(fit(x, chunk=8).covariance, np.cov(x.T), rtol=1e-12)


def test_a_mapped_file_gives_the_same_digits_and_is_read_in_parts(tmp_path):
    x = np.random.default_rng(8).normal(size=(300, 5)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    ours, theirs = fit(x, chunk=32), fit(mapped, chunk=32)
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.covariance, theirs.covariance)
    np.testing.assert_allclose(ours.covariance, np.cov(x.astype(np.float64).T), rtol=1e-12)
    reference = FrechetTo(gaussian(np.zeros(5), np.eye(5)))
    assert bootstrap(x, reference, 5, seed=0) == bootstrap(mapped, reference, 5, seed=0)
    Recorder.most = 0
    recorder = x.view(Recorder)
    fit(recorder, chunk=32)
    bootstrap(recorder, reference, 2, seed=0, chunk=32)
    distance_by_count(recorder, reference, [3, 100, 300], seed=0, chunk=32)
    assert 0 < Recorder.most <= 32


@pytest.mark.parametrize("d", [3, 40])
def test_times_are_repeated_rows(d):
    rng = np.random.default_rng(9)
    x, times = rng.normal(5, 1, (30, d)), rng.integers(0, 4, 30)
    repeated = np.repeat(x, times, axis=0)
    ours, expected = fit(x, times, chunk=4), fit(repeated)
    assert ours.count == expected.count == times.sum()
    np.testing.assert_allclose(ours.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, expected.covariance, rtol=1e-10, atol=1e-13)
    reference = FrechetTo(gaussian(rng.normal(size=d), random_covariance(rng, d)))
    distance = reference.gaussian(expected)
    np.testing.assert_allclose(reference.samples(x, times), distance, rtol=1e-6)
    np.testing.assert_allclose(reference.samples(repeated), distance, rtol=1e-6)


@pytest.mark.parametrize("n", [2, 10, 23, 24, 25])
def test_the_short_way_for_few_images_equals_the_long_one(n):
    rng = np.random.default_rng(10)
    x = rng.normal(2, 1, (n, 24))
    reference = FrechetTo(gaussian(rng.normal(size=24), random_covariance(rng, 24)))
    np.testing.assert_allclose(reference.samples(x), reference.gaussian(fit(x)), rtol=1e-6)


@pytest.fixture(scope="module")
def model():
    """A reference, features of a model, and the true distance between the two."""
    rng = np.random.default_rng(11)
    d = 16
    scale = np.arange(1, d + 1) ** -0.7
    reference = gaussian(np.zeros(d), np.diag(scale**2))
    mixing = np.diag(scale) @ (np.eye(d) + 0.2 * rng.normal(size=(d, d)) / np.sqrt(d))
    mean = 0.05 * rng.normal(size=d)

    def draw(n, seed):
        return mean + np.random.default_rng(seed).normal(size=(n, d)) @ mixing.T

    true = frechet_distance(reference, gaussian(mean, mixing @ mixing.T))
    return FrechetTo(reference), draw, true


def test_the_distance_at_infinity_has_less_error_than_that_of_all_images(model):
    reference, draw, true = model
    n = 400
    finite, infinite = [], []
    for seed in range(20):
        result = distance_by_count(draw(n, seed), reference, counts_up_to(n, 16), seed)
        assert result.counts[-1] == n and len(result.distances) == len(result.counts)
        finite.append(result.distances[-1])
        infinite.append(result.infinity)
    bias = np.mean(finite) - true
    assert bias > 0.01
    assert abs(np.mean(infinite) - true) < 0.35 * bias
    errors = np.abs(np.array([finite, infinite]) - true).mean(1)
    assert errors[1] < errors[0]


def test_a_line_is_extrapolated_only_over_enough_images(model):
    reference, draw, _ = model
    x = draw(200, 0)
    # d = 16: only counts from 32 on lie on the line.
    for counts in ([32, 64], [8, 16, 31, 200], [101, 150, 200], [20, 24, 32, 63]):
        result = distance_by_count(x, reference, counts, seed=0)
        assert result.infinity is None
        assert result.counts == tuple(counts)
    line = distance_by_count(x, reference, [200, 4, 64, 32], seed=0)
    assert line.counts == (4, 32, 64, 200)
    # Exactly the least-squares line through the three that count.
    inverse = 1 / np.array([32, 64, 200])
    slope = np.cov(inverse, line.distances[1:])[0, 1] / np.var(inverse, ddof=1)
    intercept = np.mean(line.distances[1:]) - slope * inverse.mean()
    np.testing.assert_allclose(line.infinity, intercept, rtol=1e-6)


@pytest.mark.parametrize(("count", "dimension"), [(2, 8), (5, 8), (31, 8), (32, 8), (50_000, 2048)])
def test_proposed_counts_are_valid_and_allow_a_line_if_any_do(count, dimension):
    counts = counts_up_to(count, dimension)
    assert list(counts) == sorted(set(counts))
    assert counts[0] >= 2 and counts[-1] == count and len(counts) <= 8
    assert (counts[0] >= 2 * dimension and len(counts) > 3) == (count >= 4 * dimension)


def test_draws_depend_on_the_seed_alone(model):
    reference, draw, _ = model
    x = draw(80, 0)
    curves = [distance_by_count(x, reference, [20, 40, 80], seed) for seed in (3, 3, 4)]
    assert curves[0] == curves[1]
    assert curves[0].distances[:2] != curves[2].distances[:2]
    # All of the images, whatever the seed.
    np.testing.assert_allclose(curves[0].distances[2], reference.samples(x), rtol=1e-12)
    errors = [bootstrap(x, reference, 5, seed) for seed in (3, 3, 4)]
    assert errors[0] == errors[1]
    assert errors[0].standard_error != errors[2].standard_error


# Where the distance is mostly bias, the error is too large rather than too small.
@pytest.mark.parametrize(
    ("n", "shift", "most"), [(12, 0, 3), (12, 1, 1.6), (150, 0, 1.6), (150, 1, 1.4)]
)
def test_standard_error_is_the_spread_over_fresh_sets(model, n, shift, most):
    reference, draw, _ = model
    sets = [shift + draw(n, 100 + i) for i in range(200)]
    spread = np.std([reference.samples(x) for x in sets], ddof=1)
    errors = [bootstrap(x, reference, 60, seed=i).standard_error for i, x in enumerate(sets[:8])]
    assert 0.7 < np.mean(errors) / spread < most


def test_interval_holds_the_mean_over_fresh_sets_unlike_percentiles(model):
    reference, draw, _ = model
    n = 40
    mean = np.mean([reference.samples(draw(n, 100 + i)) for i in range(100)])
    held = held_by_percentiles = 0
    rng = np.random.default_rng(0)
    for i in range(20):
        x = draw(n, i)
        result = bootstrap(x, reference, 20, seed=i)
        low, high = result.interval
        np.testing.assert_allclose(high - result.distance, 1.96 * result.standard_error)
        np.testing.assert_allclose(low, max(2 * result.distance - high, 0), atol=1e-12)
        held += low < mean < high
        replicates = [reference.samples(x[rng.integers(0, n, n)]) for _ in range(20)]
        held_by_percentiles += np.percentile(replicates, 2.5) < mean
    assert held >= 18
    assert held_by_percentiles <= 10


def test_interval_ends_at_zero():
    x = np.random.default_rng(12).normal(size=(2000, 1))
    result = bootstrap(x, FrechetTo(fit(x)), 20, seed=0)
    assert result.interval[0] == 0 < result.interval[1]


def test_too_few_images_for_the_dimensions_are_said():
    warning = rank_warning(8, 8)
    assert "8 images are too few for 8 dimensions" in warning and "at least 9" in warning
    assert rank_warning(9, 8) is None
    assert rank_warning(None, 8) is None
    # True to its word.
    rng = np.random.default_rng(13)
    assert np.linalg.matrix_rank(fit(rng.normal(size=(8, 8))).covariance) == 7
    assert np.linalg.matrix_rank(fit(rng.normal(size=(9, 8))).covariance) == 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(value):
    x = np.zeros((40, 3), np.float32)
    x[[17, 30], 1] = value
    with pytest.raises(InputError, match=r"row 17 of the features .* not finite"):
        fit(x, chunk=8)
    with pytest.raises(InputError, match=r"row 17 of the features .* not finite"):
        FrechetTo(gaussian(np.zeros(3), np.eye(3))).samples(x)


def test_bad_input_is_refused():
    reference = FrechetTo(gaussian(np.zeros(3), np.eye(3)))
    x = np.zeros((10, 3))
    for few in (x[:0], x[:1]):
        with pytest.raises(InputError, match="at least 2"):
            fit(few)
        with pytest.raises(InputError, match="at least 2"):
            reference.samples(few)
    with pytest.raises(InputError, match="at least 2"):
        fit(x, np.eye(1, 10, dtype=int)[0])
    with pytest.raises(InputError, match=r"dimension 4 .* dimension 3.*different networks"):
        reference.samples(np.zeros((10, 4)))
    with pytest.raises(InputError, match=r"dimension 2 .* dimension 3.*different networks"):
        reference.gaussian(gaussian(np.zeros(2), np.eye(2)))
    for counts in ([], [1, 5], [5, 11]):
        with pytest.raises(InputError, match="from 2 to 10"):
            distance_by_count(x, reference, counts, seed=0)
    with pytest.raises(InputError, match="repeats=1"):
        bootstrap(x, reference, 1, seed=0)
