"""Nearest neighbours among features, and what they tell: precision, recall, a classifier.

Source: Kynkäänniemi et al. 2019, section 3.

Distances of all pairs come a block at a time from |x|^2 - 2 x.y + |y|^2, one matrix product. It
cancels for pairs that are near, which are the ones that matter: in float32 by about 3e-4 of |x|, so
in float64 (twice the time), about the mean of the references. What a result depends on is then
taken from the difference itself, so that copies are at a distance of exactly 0.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import check_dimensions, parts, read

# Features that are in memory at a time: 32 MB at 2048 dimensions, and 32 MB of distances.
_BLOCK = 2048

# Rounding of a squared distance by the matrix product, relative to the squared norms.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """How much of each set lies in the manifold of the other.

    Attributes:
        precision: fraction of the images that look like a reference: quality, [0, 1].
        recall: fraction of the references that look like an image: variety, [0, 1].
    """

    precision: float
    recall: float


def nearest(
    queries: Float[np.ndarray, "n d"],
    references: Float[np.ndarray, "m d_reference"],
    k: int,
    block: int = _BLOCK,
) -> tuple[Float64[np.ndarray, "n {k}"], Int[np.ndarray, "n {k}"]]:
    """The k nearest references of each query, by Euclidean distance.

    A query that is among the references finds itself, at a distance of 0. Memory does not grow
    with the references; the result does not depend on `block`, except in which of several equally
    distant references come back.

    Args:
        queries: one row an image.
        references: the same for the images to look among.
        k: neighbours, 1 to m.
        block: rows of each in memory at a time.

    Returns:
        Distances, ascending, and the rows of the references.

    Raises:
        InputError: the dimensions differ, k out of its range, or a value is not finite.
    """
    check_dimensions(queries.shape[1], references.shape[1])
    if not 1 <= k <= len(references):
        raise InputError(
            f"{k} nearest neighbours among {len(references)} images: a number from 1 to"
            f" {len(references)} is needed"
        )
    distances = np.full((len(queries), k), np.inf)
    indices = np.zeros((len(queries), k), int)
    center = _center(references, block)
    for rows in parts(len(queries), block):
        x = read(queries, rows) - center
        for columns in parts(len(references), block):
            y = read(references, columns) - center
            squares = _squared_distances(x, y)
            near = np.argpartition(squares, min(k, len(y)) - 1, axis=1)[:, :k]
            # One neighbour of all queries at a time: no array is larger than x.
            exact = np.stack([np.linalg.norm(x - y[column], axis=1) for column in near.T], axis=1)
            both = np.concatenate([distances[rows], exact], axis=1)
            both_indices = np.concatenate([indices[rows], near + columns.start], axis=1)
            order = np.argsort(both, axis=1, kind="stable")[:, :k]
            distances[rows] = np.take_along_axis(both, order, axis=1)
            indices[rows] = np.take_along_axis(both_indices, order, axis=1)
    return distances, indices


def knn_accuracy(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    reference_features: Float[np.ndarray, "m d_reference"],
    reference_labels: Int[np.ndarray, " m"],
    k: int = 5,
    block: int = _BLOCK,
) -> float:
    """Fraction of images whose label most of their k nearest references have.

    Where labels are equally frequent, the one of the nearest reference among them is taken.

    Args:
        features: one row an image.
        labels: class of each.
        reference_features: the same for the images to look among.
        reference_labels: class of each.
        k: neighbours that vote.
        block: rows of each in memory at a time.

    Raises:
        InputError: no images, and as `nearest`.
    """
    if len(features) == 0:
        raise InputError("accuracy of 0 images: at least 1 is needed")
    _, indices = nearest(features, reference_features, k, block)
    candidates = reference_labels[indices]
    votes = np.sum(candidates[:, :, None] == candidates[:, None, :], axis=2)
    # argmax takes the first, so the nearest.
    winners = candidates[np.arange(len(candidates)), np.argmax(votes, axis=1)]
    return float(np.mean(winners == labels))


def precision_recall(
    features: Float[np.ndarray, "n d"],
    reference_features: Float[np.ndarray, "m d_reference"],
    k: int = 3,
    block: int = _BLOCK,
) -> PrecisionRecall:
    """Improved precision and recall (Eqs. 1 and 2).

    The manifold of a set is the union of balls around its members, each as large as the distance to
    the member's k-th nearest other member. Both numbers depend on the numbers of images: compare
    only results of as many.

    Args:
        features: one row an image that was made.
        reference_features: the same for real images.
        k: neighbours; larger balls the larger it is.
        block: rows of each in memory at a time.

    Raises:
        InputError: the dimensions differ, a set has no more than k images, k is below 1, or a value
            is not finite.
    """
    check_dimensions(features.shape[1], reference_features.shape[1])
    if k < 1:
        raise InputError(f"k={k}: at least 1 neighbour is needed")
    fewest = min(len(features), len(reference_features))
    if fewest <= k:
        raise InputError(
            f"precision and recall with {k} neighbours of {fewest} images: at least {k + 1} are"
            " needed"
        )
    return PrecisionRecall(
        precision=float(np.mean(_inside(features, reference_features, k, block))),
        recall=float(np.mean(_inside(reference_features, features, k, block))),
    )


def _inside(
    queries: Float[np.ndarray, "n d"], members: Float[np.ndarray, "m d"], k: int, block: int
) -> Bool[np.ndarray, " n"]:
    """Which queries lie in the manifold of the members."""
    # Each member finds itself, or a copy of it: one more.
    radii = nearest(members, members, k + 1, block)[0][:, -1]
    center = _center(members, block)
    inside = np.zeros(len(queries), bool)
    for rows in parts(len(queries), block):
        x = read(queries, rows) - center
        found = inside[rows]
        for columns in parts(len(members), block):
            y, radius = read(members, columns) - center, radii[columns]
            margin = _squared_distances(x, y) - radius**2
            error = _ROUNDING * (np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1))
            found |= np.any(margin <= -error, axis=1)
            # On the edge within rounding: few, as a copy of a member whose k neighbours are copies.
            for i in np.flatnonzero(~found):
                edge = np.flatnonzero(margin[i] <= error[i])
                found[i] = np.any(np.linalg.norm(x[i] - y[edge], axis=1) <= radius[edge])
    return inside


def _center(features: Float[np.ndarray, "m d"], block: int) -> Float64[np.ndarray, " d"]:
    """A point amid the features: about it the norms are small, and so is the rounding."""
    return np.mean(read(features, slice(0, block)), axis=0)


def _squared_distances(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> Float64[np.ndarray, "n m"]:
    """Of all pairs, within rounding of the squared norms, at least 0."""
    norms = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)
    return np.maximum(norms - 2 * (x @ y.T), 0)
