"""Frozen classifiers as the metrics use them: features and logits of images, and a protocol."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vqjax.pixels import ensure_float, to_bytes, to_float

Outputs = tuple[Float[Array, "b d"], Float[Array, "b k"]]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A frozen classifier that metrics take features and logits of.

    Attributes:
        name: one of `vqjax.evaluation.network_registry.NETWORKS`.
        dim: of its features.
        num_logits: of its classes.
        apply: features and logits from variables and images in [-1, 1] of any size; pure.
        variables: its weights, on the host.
        protocol: everything that the features depend on, but for the code.
        modules: names of the modules that compute the features.
    """

    name: str
    dim: int
    num_logits: int
    apply: Callable[[Any, Float[Array, "b H W 3"]], Outputs]
    variables: Any
    protocol: dict[str, Any]
    modules: tuple[str, ...] = ()

    def metric(self, name: str) -> str:
        """The name of a metric on these features: the usual one on Inception alone."""
        if self.name == "inception":
            return name
        return f"{name.replace('FID', 'FD').replace('KID', 'KD')}-{self.name[-5:]}"

    def outputs(
        self, variables: Any, images: UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]
    ) -> dict[str, Array]:
        """The columns "features" and "logits" of images, of 8 bits or in [-1, 1]; pure."""
        features, logits = self.apply(variables, ensure_float(images))
        return {"features": features, "logits": logits}

    @functools.cached_property
    def jitted_outputs(self) -> Callable[..., dict[str, Array]]:
        """`outputs`, jitted: one program for all that use this network."""
        return jax.jit(self.outputs)

    def __call__(self, images: UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]) -> Outputs:
        """Features and logits of images, of 8 bits or in [-1, 1], on the first device."""
        outputs = self.jitted_outputs(self._on_device, images)
        return outputs["features"], outputs["logits"]

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)


def as_saved(
    images: Float[Array, "b H W 3"], pixels: Literal["png", "float"]
) -> Float[Array, "b H W 3"]:
    """Images in [-1, 1], clipped to that range, as they are compared.

    Args:
        images: of a model.
        pixels: "png" as they would be read back from a file of 8 bits, "float" as they are.
    """
    return to_float(to_bytes(images)) if pixels == "png" else jnp.clip(images, -1.0, 1.0)
