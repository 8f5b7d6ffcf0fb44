"""Adversarial losses of discriminator and generator, R1, and VQGAN's adaptive weight."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kind = Literal["hinge", "non_saturating"]


def discriminator_loss(
    kind: Kind, real_logits: Float[Array, "real n"], fake_logits: Float[Array, "fake n"]
) -> Float[Array, ""]:
    """The discriminator's loss: its mean over real logits plus that over fake ones.

    The sum, as in the papers; VQGAN's code halves the hinge loss, which Adam does not see.

    Args:
        kind: "hinge" (Lim and Ye 2017, Eq. 5) or "non_saturating" (Goodfellow et al. 2014, Eq. 1).
        real_logits: of real images.
        fake_logits: of generated ones.
    """
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    if kind == "hinge":
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def generator_loss(kind: Kind, fake_logits: Float[Array, "fake n"]) -> Float[Array, ""]:
    """The generator's loss, against a discriminator with `discriminator_loss` of the same kind."""
    fake = fake_logits.astype(jnp.float32)
    return jnp.mean(-fake if kind == "hinge" else jax.nn.softplus(-fake))


def r1_penalty(
    discriminator: Callable[[Float[Array, "b H W 3"]], Float[Array, "b n"]],
    images: Float[Array, "b H W 3"],
) -> Float[Array, ""]:
    """The squared norm of the discriminator's gradient at an image, mean over the images.

    The discriminator's loss has it times half of gamma.

    Args:
        discriminator: logits of images; where an image has several, the gradient is of their sum.
        images: real ones.

    Source: Mescheder et al. 2018, Eq. 9.
    """
    gradient = jax.grad(lambda x: jnp.sum(discriminator(x).astype(jnp.float32)))(images)
    return jnp.mean(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=(1, 2, 3)))


def adaptive_weight(
    reconstruction_gradient: Float[Array, "*shape"],
    adversarial_gradient: Float[Array, "*shape"],
    maximum: float,
) -> Float[Array, ""]:
    """The weight at which the adversarial gradient is as large as that of the reconstruction.

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
