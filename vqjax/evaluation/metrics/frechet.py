"""Fréchet distance between the features of two sets of images, and how far to trust it.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

Source: Heusel et al. 2017, section 3 and Eq. 6. Everything is float64 on the host.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from vqjax.errors import InputError

# Rows that are in memory at a time: 16 MB at 2048 dimensions.
_CHUNK = 1024

# A line needs some points, over a range that is not all noise.
_MIN_COUNTS = 3
_MIN_RANGE = 2

Times = Int[np.ndarray, " n"]


# Arrays have no single truth value, so == on the fields would raise.
@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution: all that the Fréchet distance sees of a set of images.

    Attributes:
        mean: of the features.
        covariance: of the features, unbiased (divisor count - 1).
        count: images that it was fitted to; None if unknown.
    """

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    count: int | None

    @property
    def dimension(self) -> int:
        """Of the features."""
        return len(self.mean)


@dataclasses.dataclass(frozen=True)
class DistanceByCount:
    """Distances of ever more images, and their limit.

    Attributes:
        counts: numbers of images, ascending.
        distances: of that many images to the reference.
        infinity: limit of the distances, with a larger error than theirs, by which it may fall
            below 0. None if there are too few images to say, see `distance_by_count`.
    """

    counts: tuple[int, ...]
    distances: tuple[float, ...]
    infinity: float | None


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """The spread of a distance over other sets of as many images.

    Attributes:
        distance: of the images to the reference.
        standard_error: standard deviation over such sets, estimated.
        interval: lower and upper end, which hold the mean over such sets with a probability of
            95 %. That mean has the bias of so few images; the interval says nothing about it.
    """

    distance: float
    standard_error: float
    interval: tuple[float, float]


def fit(
    features: Float[np.ndarray, "n d"], times: Times | None = None, chunk: int = _CHUNK
) -> Gaussian:
    """The mean and the unbiased covariance of features.

    Memory does not grow with n: a memory-mapped file is read once, in order, `chunk` rows at a
    time. The result is the same for any chunk but for rounding (1e-14 or so).

    Args:
        features: one row an image.
        times: how often each row counts, at least 0 [once].
        chunk: rows in memory at a time.

    Raises:
        InputError: fewer than two images, or a value that is not finite.
    """
    n, d = features.shape
    _check_count(n if times is None else int(times.sum()))
    mean, scatter, count = np.zeros(d), np.zeros((d, d)), 0
    for part in parts(n, chunk):
        weights = np.ones(part.stop - part.start) if times is None else times[part]
        rows = part.start + np.flatnonzero(weights)
        if len(rows) == 0:
            continue
        x, weights = read(features, rows), weights[weights > 0]
        # Sums about the mean of each part, joined (Chan et al. 1983): a sum of squares about 0
        # would cancel where the mean is large.
        more = int(weights.sum())
        part_mean = weights @ x / more
        step = part_mean - mean
        x = np.sqrt(weights)[:, None] * (x - part_mean)
        scatter += x.T @ x + np.outer(step, step) * (count * more / (count + more))
        mean += step * (more / (count + more))
        count += more
    return Gaussian(mean, scatter / (count - 1), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The Fréchet distance of two Gaussians (squared, as is the custom), at least 0.

    Raises:
        InputError: the dimensions differ.
    """
    return FrechetTo(a).gaussian(b)


class FrechetTo:
    """Fréchet distances to one reference, the root of whose covariance is taken only once.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    symmetric and positive semidefinite: no complex numbers, and nothing breaks where a covariance
    is singular.
    """

    def __init__(self, reference: Gaussian):
        self.reference = reference

    def gaussian(self, other: Gaussian) -> float:
        """The distance of a Gaussian, at least 0.

        Raises:
            InputError: the dimensions differ.
        """
        check_dimensions(other.dimension, self.reference.dimension)
        product = self._root @ other.covariance @ self._root
        return self._distance(other.mean, float(np.trace(other.covariance)), product)

    def samples(
        self, features: Float[np.ndarray, "n d"], times: Times | None = None, chunk: int = _CHUNK
    ) -> float:
        """The distance of the Gaussian of features, by the shorter way if there are few.

        Args:
            features: one row an image.
            times: how often each row counts, at least 0 [once].
            chunk: rows in memory at a time, as in `fit`; or as many as there are dimensions.

        Raises:
            InputError: the dimensions differ, fewer than two images, or a value is not finite.
        """
        check_dimensions(features.shape[1], self.reference.dimension)
        if times is None:
            times = np.ones(len(features), int)
        rows = np.flatnonzero(times)
        if len(rows) > self.reference.dimension:
            return self.gaussian(fit(features, times, chunk))
        # With S2 = X'X, the eigenvalues of S1^(1/2) X'X S1^(1/2) that are not 0 are those of
        # X S1 X', a matrix of the images and not of the dimensions.
        count = int(times.sum())
        _check_count(count)
        x, weights = read(features, rows), times[rows]
        mean = weights @ x / count
        x = np.sqrt(weights / (count - 1))[:, None] * (x - mean)
        return self._distance(mean, float(np.sum(x**2)), x @ self.reference.covariance @ x.T)

    @functools.cached_property
    def _root(self) -> Float64[np.ndarray, "d d"]:
        values, vectors = np.linalg.eigh(self.reference.covariance)
        return (vectors * _root_of_clipped(values)) @ vectors.T

    def _distance(
        self, mean: Float64[np.ndarray, " d"], trace: float, product: Float64[np.ndarray, "m m"]
    ) -> float:
        # Rounding leaves the product not quite symmetric.
        roots = _root_of_clipped(np.linalg.eigvalsh((product + product.T) / 2))
        shift = np.sum((mean - self.reference.mean) ** 2)
        traces = trace + np.trace(self.reference.covariance)
        return max(float(shift + traces - 2 * roots.sum()), 0.0)


def counts_up_to(count: int, dimension: int, number: int = 8) -> tuple[int, ...]:
    """Numbers of images for `distance_by_count`, ascending, the last one all of them.

    Evenly spaced in 1 / number, from the fewest that count for the line, or from a quarter of the
    images where those do not do.

    Args:
        count: images that there are, at least 2.
        dimension: of their features.
        number: how many at most.
    """
    floor = _fewest_for_a_line(dimension)
    if count < _MIN_RANGE * floor:
        floor = max(count // 4, 2)
    counts = 1 / np.linspace(1 / floor, 1 / count, number)
    return tuple(sorted({round(c) for c in counts}))


def distance_by_count(
    features: Float[np.ndarray, "n d"],
    reference: FrechetTo,
    counts: Sequence[int],
    seed: int,
    chunk: int = _CHUNK,
) -> DistanceByCount:
    """Distances of ever more of the images, and their limit at infinitely many.

    A covariance of few images makes the distance too large, to first order by a term in 1 / count
    that depends on the model too, so that two models may change places. The intercept of a line in
    1 / count has no such term. Source: Chong and Forsyth 2020, section 3. The reference stays as it
    is: the bias of its own count remains.

    The line is fitted to the counts that are at least twice the dimension (below that, the terms
    of higher order are not small). There have to be three, the largest at least twice the
    smallest; `infinity` is None otherwise, so with fewer images than four times the dimension.

    Args:
        features: one row an image.
        reference: that the distance is to.
        counts: numbers of images, from 2 to n; `counts_up_to` has good ones.
        seed: of the choice of the images, drawn for each count anew without replacement.
        chunk: rows in memory at a time.

    Raises:
        InputError: a count out of its range, and as `FrechetTo.samples`.
    """
    n, d = features.shape
    counts = sorted(set(counts))
    if not counts or counts[0] < 2 or counts[-1] > n:
        raise InputError(f"counts={counts}: numbers of images from 2 to {n} are needed")
    rng = np.random.default_rng(seed)
    distances = []
    for count in counts:
        times = np.zeros(n, int)
        times[rng.choice(n, count, replace=False)] = 1
        distances.append(reference.samples(features, times, chunk))
    infinity = None
    first = int(np.searchsorted(counts, _fewest_for_a_line(d)))
    fitted = counts[first:]
    if len(fitted) >= _MIN_COUNTS and fitted[-1] >= _MIN_RANGE * fitted[0]:
        _, infinity = map(float, np.polyfit(1 / np.array(fitted), distances[first:], 1))
    return DistanceByCount(tuple(counts), tuple(distances), infinity)


def bootstrap(
    features: Float[np.ndarray, "n d"],
    reference: FrechetTo,
    repeats: int,
    seed: int,
    chunk: int = _CHUNK,
) -> Uncertainty:
    """The standard error of a distance, from sets of as many images drawn with replacement.

    Each repeat costs as much as the distance itself. The reference is taken as it is. Where the
    distance is mostly bias (few images for the dimensions, a nearly perfect model), the error is
    too large rather than too small: by 1.5 to 3 times on Gaussians whose spread is known.
    Source: Efron 1979.

    Args:
        features: one row an image.
        reference: that the distance is to.
        repeats: sets that are drawn, at least 2; with 100 the error is known to 7 %.
        seed: of the draws.
        chunk: rows in memory at a time.

    Raises:
        InputError: too few repeats, and as `FrechetTo.samples`.
    """
    if repeats < 2:
        raise InputError(f"repeats={repeats}: at least 2 are needed for a standard error")
    n = len(features)
    distance = reference.samples(features, chunk=chunk)
    rng = np.random.default_rng(seed)
    replicates = [
        reference.samples(features, np.bincount(rng.integers(0, n, n), minlength=n), chunk)
        for _ in range(repeats)
    ]
    error = float(np.std(replicates, ddof=1))
    # A drawn set repeats images, so it has a covariance of lower rank and a distance that is too
    # large: all replicates may lie above the distance itself, and their percentiles with them.
    # Only their spread is of use.
    interval = max(distance - 1.96 * error, 0.0), distance + 1.96 * error
    return Uncertainty(distance, error, interval)


def rank_warning(count: int | None, dimension: int) -> str | None:
    """A sentence on a covariance that cannot have full rank; None if it can, or nobody knows.

    Args:
        count: images that it is of; None where that is not known.
        dimension: of their features.
    """
    if count is None or count > dimension:
        return None
    return (
        f"{count} images are too few for {dimension} dimensions: the covariance is singular and"
        f" the distance biased upward; at least {dimension + 1} are needed"
    )


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def read(
    features: Float[np.ndarray, "n d"],
    rows: slice | Int[np.ndarray, " m"],
    name: str = "features",
) -> Float64[np.ndarray, "rows d"]:
    """Some rows of a table in float64; of a memory-mapped file, only they are read.

    Args:
        features: one row an image.
        rows: which, ascending.
        name: of the table, for the error.

    Raises:
        InputError: a value is NaN or infinite; the message names the first of the rows that has
            one.
    """
    part = features[rows].astype(np.float64)
    finite = np.isfinite(part).all(axis=1)
    if not finite.all():
        row = np.arange(len(features))[rows][np.argmin(finite)]
        raise InputError(
            f"row {row} of the {name} has a value that is not finite; look at the image that it"
            " comes from, or at the network"
        )
    return part


def check_dimensions(dimension: int, reference_dimension: int) -> None:
    """Refuses features that cannot come from the same network.

    Raises:
        InputError: the dimensions differ.
    """
    if dimension != reference_dimension:
        raise InputError(
            f"features of dimension {dimension} against a reference of dimension"
            f" {reference_dimension}: they come from different networks; take both from one"
        )


def _fewest_for_a_line(dimension: int) -> int:
    return 2 * dimension


def _root_of_clipped(values: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Square roots of eigenvalues that only rounding makes negative."""
    return np.sqrt(np.maximum(values, 0))


def _check_count(count: int) -> None:
    if count < 2:
        raise InputError(f"features of {count} images: a covariance needs at least 2")
