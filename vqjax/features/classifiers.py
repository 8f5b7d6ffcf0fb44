"""Classifiers of ImageNet by name, for images of any size."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Float, Int, UInt8

from vqjax.errors import InputError, did_you_mean
from vqjax.features import efficientnet_lite, resnet
from vqjax.features.imagenet import at_side
from vqjax.pixels import ensure_float


@dataclasses.dataclass(frozen=True, eq=False)
class ImagenetClassifier:
    """ImageNet logits of images in [-1, 1] of any size.

    Attributes:
        name: one of `CLASSIFIERS`.
        forward: the logits from variables and images, jitted.
        variables: its weights.
    """

    name: str
    forward: Callable[[Any, Float[Array, "b H W 3"]], Float[Array, "b 1000"]]
    variables: Any

    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b 1000"]:
        """Unnormalised log-probabilities of the classes."""
        return self.forward(self.variables, images)

    def guesses(
        self, images: UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"], count: int
    ) -> Int[Array, "b {count}"]:
        """The classes of the highest logits, best first; images of 8 bits or in [-1, 1]."""
        return jax.lax.top_k(self(ensure_float(images)), count)[1]


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

    logits = at_side(functools.partial(module.apply, method="logits"), side)
    return ImagenetClassifier(name, jax.jit(logits), jax.device_put(variables))
