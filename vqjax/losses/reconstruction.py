"""The loss of a reconstruction: pixel and perceptual terms, weighted.

Source: paper 000, Eq. 1; paper 001, Eqs. 2 and 3.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import check_fields
from vqjax.losses.perceptual import LPIPS, Net, load_lpips
from vqjax.losses.pixelwise import l1_loss, l2_loss
from vqjax.losses.semantic import LogitNet, SemanticLoss, Variant
from vqjax.settings import Range, check_settings, setting


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of a tokenizer's loss; a term of weight 0 is not computed.

    Raises:
        FieldError: a value out of its range, or a file of weights that nothing reads.
    """

    l1: float = setting(0.0, "mean absolute error of the pixels", Range(0))
    l2: float = setting(1.0, "mean squared error of the pixels", Range(0))
    perceptual: float = setting(1.0, "LPIPS", Range(0))
    perceptual_net: Net = setting("vgg16", "trunk of LPIPS")
    vq: float = setting(1.0, "the quantizer's loss", Range(0))
    semantic: float = setting(0.0, "the semantic-enhanced perceptual loss", Range(0))
    semantic_ratio: float = setting(
        1.0, "its share of semantic layers (alpha); the others are those of low", Range(0, 1)
    )
    semantic_layers: Variant = setting("semantic", "which layers are the semantic ones (table 6)")
    semantic_logits: LogitNet = setting(
        "vgg16",
        "whose logits are among them; VGG16's are the paper's and need a file,"
        " EfficientNet-lite0's come with a package",
    )
    semantic_weights: str = setting("", "file of VGG16's weights, torchvision's")
    semantic_sha256: str = setting("", "its hash, if it is not the published one")
    semantic_side: int = setting(224, "side of the images that the logits are of", Range(32))

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)
        unused = self.semantic_weights and self.semantic_logits != "vgg16"
        check_fields(
            self, [("semantic_weights", not unused, "semantic_logits=vgg16 beside a file of it")]
        )

    @property
    def semantic_loss(self) -> SemanticLoss | None:
        """The semantic-enhanced perceptual loss, if it counts."""
        if not self.semantic:
            return None
        return SemanticLoss(
            self.semantic_ratio,
            self.semantic_layers,
            self.semantic_logits,
            self.semantic_side,
            self.semantic_weights,
            self.semantic_sha256,
        )

    @property
    def networks(self) -> frozenset[str]:
        """The classifiers that the loss looks through, which therefore cannot judge the result."""
        lpips = (self.perceptual_net,) if self.perceptual else ()
        semantic = self.semantic_loss
        return frozenset((*lpips, *(semantic.networks if semantic else ())))


class ReconstructionLoss:
    """All terms but the quantizer's and the adversary's, with the frozen nets of these.

    Attributes:
        weights: of the terms.
    """

    def __init__(self, weights: LossWeights):
        """Takes the weights; nothing is loaded yet."""
        self.weights = weights
        self._lpips = LPIPS(weights.perceptual_net) if weights.perceptual else None
        self._semantic = weights.semantic_loss

    def frozen_shapes(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Shapes of `load_frozen`, for images of this (H, W, 3)."""
        shapes: dict[str, Any] = {}
        if self._lpips:
            images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
            shapes["lpips"] = jax.eval_shape(self._lpips.init, jax.random.key(0), images, images)
        if self._semantic:
            shapes["semantic"] = self._semantic.frozen_shapes()
        return shapes

    def load_frozen(self) -> dict[str, Any]:
        """The variables of the frozen nets, on the host.

        Raises:
            InputError: one is missing or not the expected one.
        """
        frozen: dict[str, Any] = {}
        if self._lpips:
            frozen["lpips"] = load_lpips(self.weights.perceptual_net)[1]
        if self._semantic:
            frozen["semantic"] = self._semantic.load_frozen()
        return frozen

    def perceptual(
        self, frozen: Any, images: Float[Array, "b H W 3"], others: Float[Array, "b H W 3"]
    ) -> dict[str, Float[Array, "b"]]:
        """The perceptual distances of each image that the loss has, by name.

        Args:
            frozen: of `load_frozen`.
            images: [-1, 1].
            others: [-1, 1].
        """
        distances: dict[str, Any] = {}
        # A GPU's TF32 is as good here (its gradient has a cosine of 0.999 with float32's), and many
        # times faster; a TPU's single pass of bfloat16 is not quite (0.995).
        with jax.default_matmul_precision("high"):
            if self._lpips:
                distances["perceptual"] = self._lpips.apply(frozen["lpips"], images, others)
            if self._semantic:
                distances["semantic"] = self._semantic(frozen["semantic"], images, others)
        return distances

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
