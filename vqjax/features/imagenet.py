"""The input convention of networks trained on ImageNet."""

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
