"""Losses and reconstruction quality: pure functions of arrays, in float32."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vqjax.errors import InputError
from vqjax.registry import did_you_mean

# Keeps the PSNR of equal images finite (106 dB), and so the mean over a data set.
_MIN_SQUARED_ERROR = 1e-10

_ADVERSARIAL_KINDS = ("hinge", "non_saturating")


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


def discriminator_loss(
    kind: str, real_logits: Float[Array, "real n"], fake_logits: Float[Array, "fake n"]
) -> Float[Array, ""]:
    """What the discriminator minimises: the mean over real logits plus that over fake ones.

    The sum, as in the papers; VQGAN's code halves the hinge loss, which Adam does not see.

    Args:
        kind: "hinge" (Lim and Ye 2017, Eq. 5) or "non_saturating" (Goodfellow et al. 2014, Eq. 1).
        real_logits: of real images.
        fake_logits: of generated ones.

    Raises:
        InputError: unknown kind.
    """
    _check_kind(kind)
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    if kind == "hinge":
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def generator_loss(kind: str, fake_logits: Float[Array, "fake n"]) -> Float[Array, ""]:
    """What the generator minimises against `discriminator_loss` of the same kind.

    Raises:
        InputError: unknown kind.
    """
    _check_kind(kind)
    fake = fake_logits.astype(jnp.float32)
    return jnp.mean(-fake if kind == "hinge" else jax.nn.softplus(-fake))


def adaptive_weight(
    reconstruction_gradient: Float[Array, "*shape"],
    adversarial_gradient: Float[Array, "*shape"],
    maximum: float,
) -> Float[Array, ""]:
    """The weight at which the adversarial loss pulls as hard as the reconstruction loss.

    Args:
        reconstruction_gradient: of the reconstruction loss by the kernel of the last layer.
        adversarial_gradient: of the generator's loss by the same.
        maximum: clamps the weight, which explodes where the adversarial gradient vanishes.

    Returns:
        The ratio of their norms, [0, maximum], a constant to differentiation.

    Source: VQGAN (Esser et al. 2021), Eq. 7, with its code's 1e-4 for delta.
    """
    reconstruction, adversarial = (
        jnp.linalg.norm(gradient.astype(jnp.float32).reshape(-1))
        for gradient in (reconstruction_gradient, adversarial_gradient)
    )
    weight = jnp.clip(reconstruction / (adversarial + 1e-4), 0.0, maximum)
    return jax.lax.stop_gradient(weight)


def _check_kind(kind: str) -> None:
    if kind not in _ADVERSARIAL_KINDS:
        raise InputError(f"adversarial loss {kind!r}: {did_you_mean(kind, _ADVERSARIAL_KINDS)}")


def _difference(
    images: Float[Array, "*shape"], reconstructions: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
