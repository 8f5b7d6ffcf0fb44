"""How a run's codebook is used and spread out. Source: paper 002, figure 5 and table 6."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vqjax import quantizers
from vqjax.generation.run import Run
from vqjax.parallel import batch_sharding, to_host
from vqjax.pixels import to_float
from vqjax.report.charts import Chart, codebook_map, frequencies


@dataclasses.dataclass(frozen=True)
class Codebook:
    """What the page shows of a codebook.

    Attributes:
        num_codes: its size.
        used: codes that occur in the validation split.
        perplexity: of their frequencies over the whole split.
        tokens: how many were counted.
        images: of how many images.
        charts: frequencies and principal components.
    """

    num_codes: int
    used: int
    perplexity: float
    tokens: int
    images: int
    charts: list[Chart]


def inspect(run: Run, batches: Iterable[dict[str, np.ndarray]]) -> Codebook:
    """Counts the codes of all images, and lays out the codebook.

    Args:
        run: whose tokenizer it is.
        batches: of `evaluation_batches`, of a size that its devices divide.
    """
    tokenizer = run.tokenizer
    apply: Callable[..., Any] = jax.jit(tokenizer.apply, static_argnames=("method",))
    share = batch_sharding(run.mesh)
    counts, images = np.zeros(tokenizer.num_codes), 0
    for batch in batches:
        pixels = jax.device_put(batch["image"], share)
        tokens = apply(run.tokenizer_variables, to_float(pixels), method="encode")
        codes = to_host(tokens.codes)[batch["valid"]]
        counts += np.bincount(codes.ravel(), minlength=len(counts))
        images += int(batch["valid"].sum())
    vectors = np.asarray(tokenizer.apply(run.tokenizer_variables, method="codebook"))
    points, explained = principal_components(vectors)
    charts = [frequencies("frequencies", counts), codebook_map("map", points, counts, explained)]
    perplexity = float(quantizers.perplexity(jnp.asarray(counts)))
    used = int(np.count_nonzero(counts))
    return Codebook(len(counts), used, perplexity, int(counts.sum()), images, charts)


def principal_components(
    vectors: Float[np.ndarray, "k d"],
) -> tuple[Float[np.ndarray, "k 2"], Float[np.ndarray, "2"]]:
    """Coordinates of vectors along the two directions of most variance, and their shares of it.

    The sign of each direction is that in which its largest coordinate is positive.
    """
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, scales, directions = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    shares = np.zeros(2)
    for i, direction in enumerate(directions[:2]):
        points[:, i] = centered @ direction * np.sign(direction[np.argmax(np.abs(direction))])
        shares[i] = scales[i] ** 2 / max(np.sum(scales**2), np.finfo(float).tiny)
    return points, shares
