"""Nearest neighbours among features, and the metrics made of them: precision, recall, accuracy.

Source: Kynkäänniemi et al. 2019, section 3.

Distances of many pairs come from |x|^2 - 2 x.y + |y|^2, one matrix product, which cancels for pairs
that are near: the ones that matter. So scikit-learn, which takes it in float64, only proposes; what
a result depends on is taken from the difference itself, and copies are at a distance of exactly 0.
"""

import dataclasses

import numpy as np
import sklearn
from jaxtyping import Bool, Float, Float64, Int
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import check_dimensions, parts, read

# Features that are in memory at a time: 32 MB at 2048 dimensions, and 32 MB of distances.
_BLOCK = 2048

# Further neighbours whose distances are looked at: rounding may swap those that are as near.
_SPARE = 4

# Rounding of a squared distance by the matrix product, relative to the squared norms.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """The shares of two sets that lie in the manifold of the other.

    Attributes:
        precision: fraction of the images that look like a reference: quality, [0, 1].
        recall: fraction of the references that look like an image: variety, [0, 1].
    """

    precision: float
    recall: float


def nearest(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d_reference"], k: int
) -> tuple[Float64[np.ndarray, "n {k}"], Int[np.ndarray, "n {k}"]]:
    """The k nearest references of each query, by Euclidean distance.

    A query that is among the references finds itself, at a distance of 0. Memory does not grow
    with the references, where both are of one type, float32 or float64. Which of several equally
    distant references come back is not said.

    Args:
        queries: one row an image.
        references: the same for the images to look among.
        k: neighbours, 1 to m.

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
    for features in (queries, references):
        for rows in parts(len(features), _BLOCK):
            read(features, rows)
    number = min(k + _SPARE, len(references))
    with sklearn.config_context(assume_finite=True):
        search = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(references)
        indices = search.kneighbors(queries, return_distance=False)
    distances = np.empty(indices.shape)
    for rows in parts(len(queries), _BLOCK):
        x = read(queries, rows)
        # One neighbour of all queries at a time: no array is larger than x.
        for column, near in enumerate(indices[rows].T):
            distances[rows, column] = np.linalg.norm(x - references[near], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)


def knn_accuracy(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    reference_features: Float[np.ndarray, "m d_reference"],
    reference_labels: Int[np.ndarray, " m"],
    k: int = 5,
) -> float:
    """Fraction of images whose label most of their k nearest references have.

    Where labels are equally frequent, the one of the nearest reference among them is taken.

    Args:
        features: one row an image.
        labels: class of each.
        reference_features: the same for the images to look among.
        reference_labels: class of each.
        k: neighbours that vote.

    Raises:
        InputError: no images, and as `nearest`.
    """
    if len(features) == 0:
        raise InputError("accuracy of 0 images: at least 1 is needed")
    _, indices = nearest(features, reference_features, k)
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
    """True for queries that lie in the manifold of the members."""
    # Each member finds itself, or a copy of it: one more.
    radii = nearest(members, members, k + 1)[0][:, -1]
    # About a point amid the members the norms are small, and so is the rounding.
    center = np.mean(read(members, slice(0, block)), axis=0)
    inside = np.zeros(len(queries), bool)
    for rows in parts(len(queries), block):
        x = read(queries, rows) - center
        found = inside[rows]
        for columns in parts(len(members), block):
            y, radius = read(members, columns) - center, radii[columns]
            margin = euclidean_distances(x, y, squared=True) - radius**2
            error = _ROUNDING * (np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1))
            found |= np.any(margin <= -error, axis=1)
            # On the edge within rounding: few, as a copy of a member whose k neighbours are copies.
            for i in np.flatnonzero(~found):
                edge = np.flatnonzero(margin[i] <= error[i])
                found[i] = np.any(np.linalg.norm(x[i] - y[edge], axis=1) <= radius[edge])
    return inside
