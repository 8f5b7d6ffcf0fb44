"""Pixels: 8-bit images as files hold them, and floats in [-1, 1] as models take them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def to_float(images: UInt8[Array | np.ndarray, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Images in [-1, 1] from 8-bit ones; they travel to the devices as bytes."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_bytes(images: Float[Array | np.ndarray, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
    """8-bit images from those in [-1, 1]; values outside that range are clipped."""
    clipped = jnp.clip(jnp.asarray(images, jnp.float32), -1.0, 1.0)
    return jnp.round((clipped + 1.0) * 127.5).astype(jnp.uint8)


def ensure_float(
    images: UInt8[Array | np.ndarray, "*b h w 3"] | Float[Array | np.ndarray, "*b h w 3"],
) -> Float[Array, "*b h w 3"]:
    """Images in [-1, 1], from 8-bit ones or from those that are so already."""
    return to_float(images) if images.dtype == np.uint8 else jnp.asarray(images)
