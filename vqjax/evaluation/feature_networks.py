"""The frozen classifiers whose features and probabilities a generator is judged by."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import InputError
from vqjax.evaluation.protocol import digest
from vqjax.features.efficientnet_lite import INPUT_SIZE, load_efficientnet_lite
from vqjax.features.inception import WEIGHTS, Resize, load_inception
from vqjax.registry import did_you_mean

NETWORKS = ("inception", "efficientnet_lite1")

Outputs = tuple[Float[Array, "b d"], Float[Array, "b k"]]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network, and what has to be said of it where a number of it is told.

    Attributes:
        name: one of `NETWORKS`.
        dim: of its features.
        num_logits: of its classes.
        apply: features and logits from variables and images in [-1, 1] of any size; pure.
        variables: its weights, on the host.
        protocol: what the features depend on.
    """

    name: str
    dim: int
    num_logits: int
    apply: Callable[[Any, Float[Array, "b H W 3"]], Outputs]
    variables: Any
    protocol: dict[str, Any]

    def metric(self, name: str) -> str:
        """What a metric on these features is called: only on Inception by its usual name."""
        if self.name == "inception":
            return name
        return f"{name.replace('FID', 'FD').replace('KID', 'KD')}-{self.name[-5:]}"

    def __call__(self, images: Float[Array, "b H W 3"]) -> Outputs:
        """Features and logits of images in [-1, 1], jitted, on the first device."""
        return self._jitted(self._placed, images)

    @functools.cached_property
    def _placed(self) -> Any:
        return jax.device_put(self.variables)

    @functools.cached_property
    def _jitted(self) -> Callable[[Any, Float[Array, "b H W 3"]], Outputs]:
        return jax.jit(self.apply)


@functools.cache
def build_network(
    name: str = "efficientnet_lite1",
    weights: Path | None = None,
    sha256: str | None = None,
    resize: str = "torch",
) -> FeatureNetwork:
    """A network with its weights.

    Args:
        name: "inception", the 2015 network of all published FIDs, or "efficientnet_lite1", whose
            weights a package brings. (lite0 is what the projected discriminator looks through:
            never score with a network that was trained against.)
        weights: file of Inception's weights.
        sha256: of that file, where it is not the published one.
        resize: how Inception's images become 299x299; see `InceptionV3`.

    Raises:
        InputError: unknown name or resize, no or wrong weights.
    """
    if name == "efficientnet_lite1":
        module, variables = load_efficientnet_lite("lite1")
        side = INPUT_SIZE["lite1"]
        lite: Callable[..., Any] = module.apply

        def apply(variables: Any, images: Float[Array, "b H W 3"]) -> Outputs:
            images = jax.image.resize(images, (len(images), side, side, 3), "bilinear")
            # By default a float32 product has fewer digits on a TPU, and on some GPUs.
            with jax.default_matmul_precision("float32"):
                return lite(variables, images, method="pooled")

        protocol = {
            "network": "EfficientNet-lite1, mean of the head's 1280 channels",
            "weights": digest(variables),
            "resize": f"bilinear, antialiased, to {side}x{side} (jax.image.resize)",
        }
        return FeatureNetwork(name, 1280, 1000, apply, variables, protocol)
    if name == "inception":
        if weights is None:
            raise InputError(
                f"the network inception needs its weights: fetch {WEIGHTS.address} and name the"
                " file with --network_weights, or use --network=efficientnet_lite1, whose weights"
                " are there already"
            )
        if resize not in get_args(Resize):
            raise InputError(f"resize {resize!r}: {did_you_mean(resize, get_args(Resize))}")
        inception, inception_variables, file_hash = load_inception(
            weights, cast(Resize, resize), sha256
        )
        forward: Callable[..., Any] = functools.partial(inception.apply, method="pooled")
        protocol = {
            "network": "Inception-v3 of 2015-12-05, pool3, 2048; classes without their bias",
            "weights": digest(inception_variables),
            "weights_file": f"sha256 {file_hash}",
            "resize": resize,
        }
        return FeatureNetwork(name, 2048, 1008, forward, inception_variables, protocol)
    raise InputError(f"network {name!r}: {did_you_mean(name, NETWORKS)}")


def to_pixels(
    images: Float[Array, "b H W 3"], pixels: Literal["png", "float"]
) -> Float[Array, "b H W 3"]:
    """Images in [-1, 1], as they would be read back from an 8-bit file, or as they are."""
    images = jnp.clip(images, -1.0, 1.0)
    return jnp.round((images + 1.0) * 127.5) / 127.5 - 1.0 if pixels == "png" else images
