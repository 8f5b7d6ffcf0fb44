"""Inception Score: how sure a classifier is of each image, and how varied its answers are.

The exponential of the mean divergence of p(label | image) from p(label), in [1, k].
Source: Salimans et al. 2016, section 4.
"""

import dataclasses

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import parts, read

# Rows that are in memory at a time: 16 MB at 1000 classes.
_CHUNK = 2048


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """The scores of several parts of the images.

    Attributes:
        mean: of the scores, [1, k].
        standard_deviation: of the scores, which is not the error of their mean.
    """

    mean: float
    standard_deviation: float


def inception_score(
    logits: Float[np.ndarray, "n k"], splits: int = 10, seed: int = 0, chunk: int = _CHUNK
) -> InceptionScore:
    """Mean and standard deviation over parts of the images.

    The fewer images in a part, the lower its score: compare only results of as many. Which images
    are in which part is drawn, as they may come in the order of their classes.

    Args:
        logits: unnormalised log-probabilities of the classes, one row an image.
        splits: parts, as equal as can be.
        seed: of the draw.
        chunk: rows in memory at a time.

    Raises:
        InputError: fewer images than parts, no part, or a value that is not finite.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise InputError(
            f"a score of {n} images in {splits} parts: at least 1 part and 1 image in each are"
            " needed"
        )
    order = np.random.default_rng(seed).permutation(n)
    scores = [_score(logits, np.sort(rows), chunk) for rows in np.array_split(order, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: Float[np.ndarray, "n k"], rows: Int[np.ndarray, " m"], chunk: int) -> float:
    """Of the images of some rows."""
    count = len(rows)
    marginal, negative_entropy = np.zeros(logits.shape[1]), 0.0
    for part in parts(count, chunk):
        log_p = scipy.special.log_softmax(read(logits, rows[part], "logits"), axis=1)
        p = np.exp(log_p)
        marginal += p.sum(axis=0) / count
        negative_entropy += np.sum(p * log_p) / count
    return float(np.exp(negative_entropy - np.sum(scipy.special.xlogy(marginal, marginal))))
