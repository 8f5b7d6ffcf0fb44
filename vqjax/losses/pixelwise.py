"""Differences of pixels: losses and the quality of a reconstruction, in float32."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Keeps the PSNR of equal images finite (106 dB), and so the mean over a data set.
_MIN_SQUARED_ERROR = 1e-10


def l1_loss(
    images: Float[Array, "*shape"], reconstructions: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Mean absolute difference over all values."""
    return jnp.mean(jnp.abs(_difference(images, reconstructions)))


def l2_loss(
    images: Float[Array, "*shape"], reconstructions: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Mean squared difference over all values."""
    return jnp.mean(jnp.square(_difference(images, reconstructions)))


def psnr(
    images: Float[Array, "b h w c"], reconstructions: Float[Array, "b h w c"]
) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio of each image in dB, at most 106.

    Images are in [-1, 1], so the peak is 2; reconstructions are clipped to that range first.
    """
    difference = _difference(images, jnp.clip(reconstructions, -1.0, 1.0))
    squared_error = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    return 10 * jnp.log10(2.0**2 / jnp.maximum(squared_error, _MIN_SQUARED_ERROR))


def _difference(
    images: Float[Array, "*shape"], reconstructions: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
