"""The loss of a reconstruction: pixel and perceptual terms, weighted. Source: paper 000, Eq. 1."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.losses.perceptual import LPIPS, Net, load_lpips
from vqjax.losses.pixelwise import l1_loss, l2_loss
from vqjax.settings import Range, check_settings, setting


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of a tokenizer's loss; a term of weight 0 is not computed.

    Raises:
        FieldError: a value out of its range.
    """

    l1: float = setting(0.0, "mean absolute error of the pixels", Range(0))
    l2: float = setting(1.0, "mean squared error of the pixels", Range(0))
    perceptual: float = setting(1.0, "LPIPS", Range(0))
    perceptual_net: Net = setting("vgg16", "trunk of LPIPS")
    vq: float = setting(1.0, "the quantizer's loss", Range(0))

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_settings(self)


class ReconstructionLoss:
    """All terms but the quantizer's and the adversary's, with the frozen nets of these.

    Attributes:
        weights: of the terms.
    """

    def __init__(self, weights: LossWeights):
        """Takes the weights; nothing is loaded yet."""
        self.weights = weights
        self._lpips = LPIPS(weights.perceptual_net) if weights.perceptual else None

    def frozen_shapes(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Shapes of `load_frozen`, for images of this (H, W, 3)."""
        if self._lpips is None:
            return {}
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return {"lpips": jax.eval_shape(self._lpips.init, jax.random.key(0), images, images)}

    def load_frozen(self) -> dict[str, Any]:
        """The variables of the frozen nets, on the host."""
        if self._lpips is None:
            return {}
        return {"lpips": load_lpips(self.weights.perceptual_net)[1]}

    def perceptual(
        self, frozen: Any, images: Float[Array, "b H W 3"], others: Float[Array, "b H W 3"]
    ) -> dict[str, Float[Array, "b"]]:
        """The perceptual distances of each image that the loss has, by name.

        Args:
            frozen: of `load_frozen`.
            images: [-1, 1].
            others: [-1, 1].
        """
        if self._lpips is None:
            return {}
        # A GPU's TF32 is as good here (its gradient has a cosine of 0.999 with float32's), and many
        # times faster; a TPU's single pass of bfloat16 is not quite (0.995).
        with jax.default_matmul_precision("high"):
            distances: Any = self._lpips.apply(frozen["lpips"], images, others)
        return {"perceptual": distances}

    def __call__(
        self, frozen: Any, reconstructions: Float[Array, "b H W 3"], images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted sum of the terms, and each of them unweighted.

        Args:
            frozen: of `load_frozen`.
            reconstructions: [-1, 1] up to the model's error.
            images: [-1, 1].
        """
        terms = {}
        if self.weights.l1:
            terms["l1"] = l1_loss(reconstructions, images)
        if self.weights.l2:
            terms["l2"] = l2_loss(reconstructions, images)
        for name, distances in self.perceptual(frozen, reconstructions, images).items():
            terms[name] = jnp.mean(distances)
        weighted = (getattr(self.weights, name) * value for name, value in terms.items())
        return sum(weighted, jnp.zeros(())), terms
