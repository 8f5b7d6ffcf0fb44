"""Classifiers of ImageNet by name, for images of any size."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Float

from vqjax.errors import InputError
from vqjax.features import efficientnet_lite, resnet
from vqjax.registry import did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class ImagenetClassifier:
    """ImageNet logits of images in [-1, 1] of any size.

    Attributes:
        name: one of `CLASSIFIERS`.
        forward: the logits from variables and images.
        variables: its weights.
    """

    name: str
    forward: Callable[[Any, Float[Array, "b H W 3"]], Float[Array, "b 1000"]]
    variables: Any

    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b 1000"]:
        """Unnormalised log-probabilities of the classes."""
        return self.forward(self.variables, images)


CLASSIFIERS = ("efficientnet_lite0", "efficientnet_lite1", "resnet101")


@functools.cache
def imagenet_classifier(
    name: str, weights: Path | None = None, sha256: str | None = None
) -> ImagenetClassifier:
    """A classifier with its weights; images are resized to the size of its training.

    Args:
        name: one of `CLASSIFIERS`. An EfficientNet-lite comes with a package.
        weights: file of resnet101's weights, of torchvision.
        sha256: see `vqjax.features.weight_files.NamedWeights.read`.

    Raises:
        InputError: the name is unknown; weights are missing, not the expected ones, or given to a
            classifier that comes with its own.
    """
    module: Any
    if name == "resnet101":
        if weights is None:
            raise InputError(
                "the classifier resnet101 needs a file of its weights (classifier_weights): fetch"
                f" it from {resnet.WEIGHTS.address}"
            )
        module, variables, _ = resnet.load_resnet101(weights, sha256)
        side = resnet.INPUT_SIZE
    elif name in CLASSIFIERS:
        if weights is not None:
            raise InputError(
                f"the classifier {name} comes with its own weights: leave {weights} out, or take"
                " resnet101"
            )
        variant = name.removeprefix("efficientnet_")
        module, variables = efficientnet_lite.load_efficientnet_lite(variant)
        side = efficientnet_lite.INPUT_SIZE[variant]
    else:
        raise InputError(f"classifier {name!r}: {did_you_mean(name, CLASSIFIERS)}")

    @jax.jit
    def logits(variables: Any, images: Float[Array, "b H W 3"]) -> Float[Array, "b 1000"]:
        images = jax.image.resize(images, (len(images), side, side, 3), "bilinear")
        return module.apply(variables, images, method="logits")

    return ImagenetClassifier(name, logits, jax.device_put(variables))
