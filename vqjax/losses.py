"""Losses and reconstruction quality: pure functions of arrays, in float32."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

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


def cross_entropy(
    logits: Float[Array, "*positions k"],
    labels: Int[Array, "*positions"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*positions"]:
    """Softmax cross-entropy of each position in nats.

    Args:
        logits: unnormalised log-probabilities of the k classes.
        labels: the right class, [0, k).
        label_smoothing: the share of the target that is spread evenly over all k classes
            (Szegedy et al., 2016, section 7), [0, 1). It needs finite logits.
    """
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing == 0.0:
        return loss
    uniform_loss = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform_loss


def _difference(
    images: Float[Array, "*shape"], reconstructions: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
