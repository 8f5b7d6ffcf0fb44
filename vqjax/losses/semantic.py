"""The semantic-enhanced perceptual loss, of plain features of VGG16. Source: paper 001, Eq. 3."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import InputError
from vqjax.features.efficientnet_lite import EfficientNetLite, load_efficientnet_lite
from vqjax.features.vgg16 import WEIGHTS, VGG16Classifier, load_vgg16
from vqjax.features.weight_files import declared_variables
from vqjax.losses.perceptual import load_lpips

# Below that, the trunk's last map has no position.
MIN_SIZE = 16

Variant = Literal["low", "A", "B", "C", "D", "semantic", "E"]
LogitNet = Literal["vgg16", "efficientnet_lite0"]

_LOW = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_LOGIT = "logit"

# Layers of each variant, in the order of table 6: the logit comes in, then the shallowest go.
LAYERS: Mapping[Variant, tuple[str, ...]] = {
    "low": _LOW,
    "A": (*_LOW, _LOGIT),
    "B": (*_LOW[1:], _LOGIT),
    "C": (*_LOW[2:], _LOGIT),
    "D": (*_LOW[3:], _LOGIT),
    "semantic": (*_LOW[4:], _LOGIT),
    "E": (_LOGIT,),
}


def layer_weights(ratio: float, variant: Variant) -> dict[str, float]:
    """The weight of each layer that counts.

    Args:
        ratio: the semantic ratio (alpha in Eq. 3), the share of the variant's layers; the others
            are those of "low". In [0, 1].
        variant: a key of `LAYERS`.
    """
    weights = {
        layer: ratio * (layer in LAYERS[variant]) + (1 - ratio) * (layer in _LOW)
        for layer in (*_LOW, _LOGIT)
    }
    return {layer: weight for layer, weight in weights.items() if weight}


@dataclasses.dataclass(frozen=True)
class SemanticLoss:
    """The distance of two images in the features of a frozen VGG16, which are not normalised.

    Attributes:
        ratio: see `layer_weights`.
        variant: likewise.
        logits_of: whose logits: VGG16's own, or, in the place of these, EfficientNet-lite0's, which
            come with a package.
        side: images are resized to it for the logits, in pixels.
        file: of VGG16's weights, needed for its logits only; the trunk is LPIPS's otherwise.
        sha256: of the file; "" for that of the published one.
    """

    ratio: float
    variant: Variant
    logits_of: LogitNet
    side: int
    file: str
    sha256: str

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each layer that counts."""
        return layer_weights(self.ratio, self.variant)

    @property
    def networks(self) -> tuple[LogitNet, ...]:
        """The classifiers that it looks through."""
        trunk = "vgg16" if self.weights.keys() - {_LOGIT} else self.logits_of
        logits = self.logits_of if _LOGIT in self.weights else trunk
        return tuple(dict.fromkeys((trunk, logits)))

    def frozen_shapes(self) -> dict[str, Any]:
        """Shapes of `load_frozen`."""
        method = "logits" if self._has_logits_of("vgg16") else None
        return {
            name: declared_variables(EfficientNetLite("lite0"))
            if name == "efficientnet_lite0"
            else declared_variables(VGG16Classifier(), method)
            for name in self.networks
        }

    def load_frozen(self) -> dict[str, Any]:
        """The variables of its networks by name, on the host.

        Raises:
            InputError: one is missing or not the expected one; no file is named.
        """
        frozen: dict[str, Any] = {}
        if self._has_logits_of("vgg16"):
            if not self.file:
                raise InputError(
                    "the semantic loss needs a file of VGG16 with its linear layers"
                    f" (loss.semantic_weights): fetch it from {WEIGHTS.address}, or take"
                    " loss.semantic_logits=efficientnet_lite0, which comes with a package"
                )
            frozen["vgg16"] = load_vgg16(Path(self.file), self.sha256 or None)[1]
        elif "vgg16" in self.networks:
            _, lpips = load_lpips("vgg16")
            frozen["vgg16"] = {"params": {"trunk": lpips["params"]["trunk"]}}
        if "efficientnet_lite0" in self.networks:
            _, frozen["efficientnet_lite0"] = load_efficientnet_lite("lite0")
        return frozen

    def features(
        self, frozen: Any, images: Float[Array, "b h w 3"]
    ) -> dict[str, Float[Array, "b ..."]]:
        """The features of the layers that count.

        Args:
            frozen: of `load_frozen`.
            images: [-1, 1].
        """
        features: Any = {}
        images = images.astype(jnp.float32)
        vgg16 = VGG16Classifier()
        if self.weights.keys() - {_LOGIT}:
            features = vgg16.apply(frozen["vgg16"], images)
        if _LOGIT in self.weights:
            seen = jax.image.resize(images, (len(images), self.side, self.side, 3), "bilinear")
            module = vgg16 if self.logits_of == "vgg16" else EfficientNetLite("lite0")
            features[_LOGIT] = module.apply(frozen[self.logits_of], seen, method="logits")
        return {layer: features[layer] for layer in self.weights}

    def __call__(
        self,
        frozen: Any,
        images_a: Float[Array, "b h w 3"],
        images_b: Float[Array, "b h w 3"],
    ) -> Float[Array, "b"]:
        """The distance of each pair, at least 0.

        The squared difference of each layer is summed and divided by H W C of its map.

        Args:
            frozen: of `load_frozen`.
            images_a: [-1, 1].
            images_b: [-1, 1].

        Raises:
            InputError: a side is shorter than 16 pixels.
        """
        height, width = images_a.shape[1:3]
        if min(height, width) < MIN_SIZE:
            raise InputError(
                f"the semantic loss was given images of {height}x{width}, expected at least"
                f" {MIN_SIZE}x{MIN_SIZE}; raise the resolution or turn it off"
            )
        features_a, features_b = self.features(frozen, images_a), self.features(frozen, images_b)
        distance = jnp.zeros(len(images_a), jnp.float32)
        for layer, weight in self.weights.items():
            difference = jnp.square(features_a[layer] - features_b[layer])
            distance += weight * jnp.mean(difference.reshape(len(difference), -1), axis=1)
        return distance

    def _has_logits_of(self, network: LogitNet) -> bool:
        return _LOGIT in self.weights and self.logits_of == network
