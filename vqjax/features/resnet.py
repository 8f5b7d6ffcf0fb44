"""ResNet-101: the ImageNet classifier of rejection sampling (He et al., 2016).

torchvision's variant, which strides in the 3x3 convolutions.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.features.folding import fold
from vqjax.features.imagenet import standardize
from vqjax.features.weight_files import NamedWeights, declared_variables
from vqjax.nn.convolutional import Convolution

# The side in pixels of the images that it was trained on.
INPUT_SIZE = 224

# torchvision's IMAGENET1K_V1, the same before it was renamed, and IMAGENET1K_V2.
WEIGHTS = NamedWeights(
    network="ResNet-101",
    address="https://download.pytorch.org/models/resnet101-63fe2227.pth",
    prefixes=("63fe2227", "5d3b4d8f", "cd907fc2"),
)
_BATCH_NORM_EPSILON = 1e-5


class ResNet(nn.Module):
    """A frozen ResNet of bottleneck blocks; its BatchNorms are folded into the convolutions.

    Attributes:
        depths: blocks of each stage; those of ResNet-101 by default.
        dtype: of the computation; the parameters are float32.
    """

    depths: tuple[int, ...] = (3, 4, 23, 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1000"]:
        """Unnormalised log-probabilities of the ImageNet classes.

        Images are RGB in [-1, 1] of any size.
        """
        x = standardize(images.astype(self.dtype))
        x = nn.relu(Convolution(64, 7, 2, 3, dtype=self.dtype, name="conv1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                stride = 2 if block == 0 < stage else 1
                name = f"layer{stage + 1}_{block}"
                x = _Bottleneck(64 * 2**stage, stride, self.dtype, name=name)(x)
        return nn.Dense(1000, dtype=self.dtype, name="fc")(jnp.mean(x, axis=(1, 2)))


class _Bottleneck(nn.Module):
    """A bottleneck block: fewer channels, a 3x3 convolution, back to four times as many."""

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        out, dtype = 4 * self.width, self.dtype
        y = nn.relu(Convolution(self.width, 1, dtype=dtype, name="conv1")(x))
        y = nn.relu(Convolution(self.width, 3, self.stride, 1, dtype=dtype, name="conv2")(y))
        y = Convolution(out, 1, dtype=dtype, name="conv3")(y)
        if x.shape != y.shape:
            x = Convolution(out, 1, self.stride, dtype=dtype, name="downsample")(x)
        return nn.relu(x + y)


def load_resnet101(
    file: Path, sha256: str | None = None, dtype: DTypeLike = jnp.float32
) -> tuple[ResNet, dict[str, Any], str]:
    """ResNet-101 with weights from a file that the user names.

    Args:
        file: torchvision's state dict, or an .npz file of its arrays.
        sha256: see `NamedWeights.read`.
        dtype: of the computation.

    Returns:
        The module, its variables, numpy arrays on the host, and the file's sha256. Place the
        variables once (`jax.device_put`) and pass them to jitted functions as an argument. They are
        not to be trained.

    Raises:
        InputError: as `NamedWeights.read`, or the file is of another network.
    """
    state, digest = WEIGHTS.read(file, sha256)
    module = ResNet(dtype=dtype)
    return module, {"params": resnet_params(module, state, str(file))}, digest


def resnet_params(module: ResNet, state: dict[str, Any], source: str) -> dict[str, Any]:
    """A ResNet's parameters from the state dict of torchvision's.

    Args:
        module: of the depths of the state dict.
        state: name -> array.
        source: file that it is from, for the message.

    Raises:
        InputError: the state dict is of another network.
    """
    expected = declared_variables(module)
    return fold(state, expected["params"], _names, _BATCH_NORM_EPSILON, source)


def _names(path: tuple[str, ...]) -> tuple[str, str | None]:
    """Torchvision's names of a layer and its BatchNorm."""
    *block, layer = path
    prefix = "".join(f"{name.replace('_', '.')}." for name in block)
    if layer == "fc":
        return "fc", None
    if layer == "downsample":
        return f"{prefix}downsample.0", f"{prefix}downsample.1"
    return f"{prefix}{layer}", f"{prefix}bn{layer.removeprefix('conv')}"
