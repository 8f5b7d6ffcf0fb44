"""The use and the layout of a run's codebook. Source: paper 002, figure 5 and table 6."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA

from vqjax import quantizers
from vqjax.generation.codec import encode
from vqjax.generation.run import Run
from vqjax.parallel import batch_sharding, to_host
from vqjax.report.charts import Chart, codebook_map, frequencies


@dataclasses.dataclass(frozen=True)
class Codebook:
    """The page's numbers and charts of a codebook.

    Attributes:
        num_codes: its size.
        used: codes that occur in the validation split.
        perplexity: of their frequencies over the whole split.
        tokens: number that was counted.
        images: number that they are of.
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
    share = batch_sharding(run.mesh)
    counts, images = np.zeros(tokenizer.num_codes), 0
    for batch in batches:
        shared = jax.device_put(batch["image"], share)
        tokens = encode(tokenizer, run.tokenizer_variables, shared)
        codes, present = to_host(tokens.codes), to_host(tokens.present)
        counted = batch["valid"][:, None] & present
        counts += to_host(quantizers.count_codes(codes, len(counts), counted))
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

    The sign of each direction is that in which its largest coordinate is positive. A direction that
    there is not (one number a vector), or that has no variance, has zeros.
    """
    count = min(2, *vectors.shape)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    analysis = PCA(count, svd_solver="full")
    # The shares of vectors that are all alike are 0 / 0.
    with np.errstate(invalid="ignore"):
        points[:, :count] = analysis.fit_transform(vectors.astype(np.float64))
    shares[:count] = np.nan_to_num(analysis.explained_variance_ratio_)
    return points, shares
