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
    """Which of the candidates are kept.

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
        if not 0 < self.acceptance <= 1:
            raise InputError(
                f"acceptance={self.acceptance}: the fraction that is kept, in (0, 1], is needed"
            )


@functools.partial(jax.jit, static_argnames=("by",))
def score(logits: Float[Array, "b k"], labels: Int[Array, "b"], by: Score) -> Float[Array, "b"]:
    """How well each image passes, a log-probability: the larger, the better.

    Args:
        logits: of the classifier.
        labels: class that each image was drawn for, [0, k); not read for "confidence".
        by: "label" for the log-probability of that class, "confidence" for that of the likeliest.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if by == "confidence":
        return jnp.max(log_p, axis=-1)
    return jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def candidate_labels(
    labels: Int[np.ndarray, " n"], acceptance: float
) -> Int[np.ndarray, " candidates"]:
    """The classes of the candidates, ascending: ceil(wanted / acceptance) of each.

    Args:
        labels: classes of the wanted images.
        acceptance: fraction of the candidates that is kept, (0, 1].
    """
    classes, wanted = np.unique(labels, return_counts=True)
    # A quotient that misses an integer by rounding must not be taken up to the next.
    return np.repeat(classes, [math.ceil(n / acceptance - 1e-6) for n in wanted])


@functools.partial(jax.jit, static_argnames=("total",))
def best(
    scores: Float[Array, " m"],
    labels: Int[Array, " m"],
    wanted: Int[Array | np.ndarray, " classes"],
    total: int,
) -> Int[Array, " {total}"]:
    """The candidates to keep: of each class those of the highest scores.

    Args:
        scores: of the candidates.
        labels: their classes.
        wanted: how many to keep of each class; no more than there are.
        total: the sum of `wanted`.

    Returns:
        Indices of candidates, by ascending class and falling score.
    """
    order = jnp.lexsort((-scores, labels))
    ordered = labels[order]
    rank = jnp.arange(len(order)) - jnp.searchsorted(ordered, ordered)
    return order[jnp.nonzero(rank < wanted[ordered], size=total)[0]]


def keep_best(
    scores: Float[np.ndarray, " m"],
    candidates: Int[np.ndarray, " m"],
    labels: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """The candidate to keep for each wanted image, the best ones of its class as they were drawn.

    Their order says nothing of their scores, so that a part of the images is a fair one.

    Args:
        scores: of the candidates.
        candidates: their classes, those of `candidate_labels`.
        labels: classes of the wanted images.
    """
    kept = np.empty(len(labels), np.int32)
    scored = jnp.asarray(scores), jnp.asarray(candidates)
    chosen = best(*scored, np.bincount(labels), len(labels))
    # Candidates come in ascending order of the class: back to that of the labels.
    kept[np.argsort(labels, kind="stable")] = np.sort(chosen)
    return kept
