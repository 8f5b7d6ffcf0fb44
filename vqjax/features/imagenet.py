"""The input conventions of networks trained on ImageNet."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The usual mean and standard deviation of RGB in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def standardize(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [-1, 1] as torchvision's ImageNet classifiers take them: mean 0, deviation 1."""
    mean = 2 * jnp.asarray(_MEAN, images.dtype) - 1
    std = 2 * jnp.asarray(_STD, images.dtype)
    return (images - mean) / std


def at_side(apply: Callable[..., Any], side: int) -> Callable[[Any, Float[Array, "b H W 3"]], Any]:
    """A network's function for images of any size, which it sees at the size of its training.

    Args:
        apply: outputs from variables and images (b, side, side, 3) in [-1, 1].
        side: in pixels; images are resized bilinearly, antialiased.

    Returns:
        A pure function of variables and images, whose products are of float32.
    """

    def resized(variables: Any, images: Float[Array, "b H W 3"]) -> Any:
        images = jax.image.resize(images, (len(images), side, side, 3), "bilinear")
        # By default a float32 product has fewer digits on a TPU, and on some GPUs.
        with jax.default_matmul_precision("float32"):
            return apply(variables, images)

    return resized
