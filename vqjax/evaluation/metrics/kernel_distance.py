"""Kernel distance between the features of two sets of images.

The squared maximum mean discrepancy with the kernel (x.y / d + 1)^3. Unlike the Fréchet distance
its estimate has no bias at any number of images, and the features need not be normal.
Source: Binkowski et al. 2018, section 4 (on Inception's features it is called KID).
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import check_dimensions, read


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """The estimates of several pairs of subsets.

    Attributes:
        mean: of the estimates; around 0 for sets of one distribution, so it may be negative.
        standard_deviation: of the estimates, which is not the error of their mean.
        subset_size: images in each subset.
    """

    mean: float
    standard_deviation: float
    subset_size: int


def kernel_distance(
    features: Float[np.ndarray, "n d"],
    reference_features: Float[np.ndarray, "m d_reference"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Mean and standard deviation over pairs of subsets drawn without replacement.

    Args:
        features: one row an image.
        reference_features: the same for the images to compare with.
        subsets: pairs of subsets.
        subset_size: images in each; with fewer images in either set, as many as that one has. The
            nearer this is to the number of images, the more the subsets share, and the less the
            standard deviation means.
        seed: of the draws.

    Raises:
        InputError: the dimensions differ, fewer than two images, no subset, or a value that is
            not finite.
    """
    check_dimensions(features.shape[1], reference_features.shape[1])
    sets = features, reference_features
    size = min(subset_size, *map(len, sets))
    if size < 2:
        raise InputError(f"a kernel distance of subsets of {size} images: at least 2 are needed")
    if subsets < 1:
        raise InputError(f"subsets={subsets}: at least 1 is needed")
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(subsets):
        # Ascending, as a file is read.
        x, y = (read(rows, np.sort(rng.choice(len(rows), size, replace=False))) for rows in sets)
        estimates.append(_squared_discrepancy(x, y))
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), size)


def _squared_discrepancy(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> float:
    """The unbiased estimate (Gretton et al. 2012, Eq. 3), which leaves out pairs of one image."""
    within = [
        (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y))
    ]
    return float(sum(within) - 2 * _kernel(x, y).mean())


def _kernel(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> Float64[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3
