"""SSIM: structural similarity of two images. Source: Wang et al. 2004, section III-B."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.errors import InputError

WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_PEAK = 2.0


def ssim(
    images: Float[Array, "b h w c"], reconstructions: Float[Array, "b h w c"]
) -> Float[Array, "b"]:
    """Structural similarity of each pair, [-1, 1], 1 for equal images.

    Images are in [-1, 1] (clipped to that range first); black is -1. A Gaussian window of 11 pixels
    and a standard deviation of 1.5 slides over each channel where it fits wholly; the result is
    the mean over windows and channels. It can be jitted and differentiated.

    Raises:
        InputError: a side is shorter than 11 pixels.
    """
    height, width = images.shape[1:3]
    if min(height, width) < WINDOW:
        raise InputError(
            f"SSIM was given images of {height}x{width}, expected at least {WINDOW}x{WINDOW};"
            " raise the resolution"
        )
    # Luminance is compared from black on.
    x, y = (jnp.clip(i.astype(jnp.float32), -1.0, 1.0) + 1.0 for i in (images, reconstructions))
    # Variances do not change with a shift, and near 0 E[x^2] - E[x]^2 does not cancel.
    mean_x, mean_y = (jnp.mean(i, axis=(1, 2), keepdims=True) for i in (x, y))
    x, y = x - mean_x, y - mean_y
    local_x, local_y, square_x, square_y, product = _blur(jnp.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = square_x - local_x**2, square_y - local_y**2
    covariance = product - local_x * local_y
    local_x, local_y = local_x + mean_x, local_y + mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    # Eq. 13
    luminance = (2 * local_x * local_y + c1) / (local_x**2 + local_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _blur(maps: Float[Array, "m b h w c"]) -> Float[Array, "m b h-10 w-10 c"]:
    """The Gaussian window's mean around each pixel where it fits wholly."""
    taps = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / _SIGMA) ** 2)
    taps /= taps.sum()
    # A sum of shifted maps stays in float32 on accelerators, whose convolutions do not.
    for axis in (2, 3):
        length = maps.shape[axis] - WINDOW + 1
        shifted = [
            float(tap) * jax.lax.slice_in_dim(maps, start, start + length, axis=axis)
            for start, tap in enumerate(taps)
        ]
        maps = functools.reduce(jnp.add, shifted)
    return maps
