"""Rejection sampling: more candidates than wanted, of which a classifier keeps the best.

Source: VQ-VAE-2 (Razavi et al. 2019), section 3.3; paper 000, table 5, at an acceptance of 0.5.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqjax.errors import InputError

Classifier = Callable[[Float[Array, "b H W 3"]], Float[Array, "b k"]]
Score = Literal["label", "confidence"]


@dataclasses.dataclass(frozen=True)
class Rejection:
    """The rule by which candidates are kept.

    Attributes:
        acceptance: fraction of the candidates that is kept, (0, 1].
        classify: logits (b, k) of images (b, H, W, 3) in [-1, 1], jitted.
        by: see `score`.

    Raises:
        InputError: acceptance out of its range.
    """

    acceptance: float
    classify: Classifier
    by: Score = "label"

    def __post_init__(self) -> None:
        """Checks the range."""
        check_acceptance(self.acceptance)


def check_acceptance(acceptance: float) -> None:
    """Raises InputError if this is no fraction of candidates to keep."""
    if not 0 < acceptance <= 1:
        raise InputError(
            f"acceptance={acceptance}: the fraction that is kept, in (0, 1], is needed"
        )


@functools.partial(jax.jit, static_argnames=("by",))
def score(logits: Float[Array, "b k"], labels: Int[Array, "b"], by: Score) -> Float[Array, "b"]:
    """The score of each image, a log-probability: the larger, the better.

    Args:
        logits: of the classifier.
        labels: class that each image was drawn for, [0, k); not read for "confidence".
        by: "label" for the log-probability of that class, "confidence" for that of the likeliest.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if by == "confidence":
        return jnp.max(log_p, axis=-1)
    return jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def condition_groups(
    conditions: Int[np.ndarray, "n c"],
) -> tuple[Int[np.ndarray, "g c"], Int[np.ndarray, " n"]]:
    """The distinct conditions in ascending order, and which of them each image has."""
    if not conditions.shape[1]:
        return conditions[:1], np.zeros(len(conditions), int)
    distinct, groups = np.unique(conditions, axis=0, return_inverse=True)
    return distinct, groups.reshape(-1)


def candidate_groups(
    groups: Int[np.ndarray, " n"], acceptance: float
) -> Int[np.ndarray, " candidates"]:
    """The groups of the candidates, ascending: ceil(wanted / acceptance) of each.

    Args:
        groups: of the wanted images, of `condition_groups`.
        acceptance: fraction of the candidates that is kept, (0, 1].
    """
    numbers, wanted = np.unique(groups, return_counts=True)
    # A quotient that misses an integer by rounding must not be taken up to the next.
    return np.repeat(numbers, [math.ceil(n / acceptance - 1e-6) for n in wanted])


@functools.partial(jax.jit, static_argnames=("total",))
def best(
    scores: Float[Array, " m"],
    groups: Int[Array, " m"],
    wanted: Int[Array | np.ndarray, " groups"],
    total: int,
) -> Int[Array, " {total}"]:
    """The candidates to keep: of each group those of the highest scores.

    Args:
        scores: of the candidates.
        groups: theirs.
        wanted: how many to keep of each group; no more than there are.
        total: the sum of `wanted`.

    Returns:
        Indices of candidates, by ascending group and falling score.
    """
    order = jnp.lexsort((-scores, groups))
    ordered = groups[order]
    rank = jnp.arange(len(order)) - jnp.searchsorted(ordered, ordered)
    return order[jnp.nonzero(rank < wanted[ordered], size=total)[0]]


def keep_best(
    scores: Float[np.ndarray, " m"],
    candidates: Int[np.ndarray, " m"],
    groups: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """The candidate to keep for each wanted image, the best ones of its group as they were drawn.

    Their order says nothing of their scores, so that a part of the images is a fair one.

    Args:
        scores: of the candidates.
        candidates: their groups, those of `candidate_groups`.
        groups: of the wanted images.
    """
    kept = np.empty(len(groups), np.int32)
    scored = jnp.asarray(scores), jnp.asarray(candidates)
    chosen = best(*scored, np.bincount(groups), len(groups))
    # Candidates come in ascending order of the group: back to that of the images.
    kept[np.argsort(groups, kind="stable")] = np.sort(chosen)
    return kept
