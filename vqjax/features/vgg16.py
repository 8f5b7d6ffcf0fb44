"""VGG16 (Simonyan and Zisserman, 2015): its convolutional trunk, and the whole classifier."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.features.folding import fold
from vqjax.features.imagenet import standardize
from vqjax.features.weight_files import NamedWeights, declared_variables
from vqjax.nn.convolutional import Convolution
from vqjax.nn.linear import Dense

# torchvision's IMAGENET1K_V1.
WEIGHTS = NamedWeights(
    network="VGG16",
    address="https://download.pytorch.org/models/vgg16-397923af.pth",
    prefixes=("397923af",),
)

# Output channels of each convolution, one row a resolution.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Side of the map that the linear layers read.
_POOLED = 7


class VGG16(nn.Module):
    """The thirteen convolutions of VGG16, read out after the last ReLU of each resolution.

    Attributes:
        dtype: of the computation; the parameters are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """Feature maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

        Images are RGB in [-1, 1]; the maps have 64, 128, 256, 512 and 512 channels at strides
        1, 2, 4, 8 and 16.
        """
        x = standardize(images.astype(self.dtype))
        features = {}
        for stage, widths in enumerate(_STAGES, start=1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for layer, width in enumerate(widths, start=1):
                name = f"conv{stage}_{layer}"
                x = nn.relu(Convolution(width, 3, padding=1, dtype=self.dtype, name=name)(x))
            features[f"relu{stage}_{len(widths)}"] = x
        return features


class VGG16Classifier(nn.Module):
    """VGG16 with its three linear layers, without their dropout.

    Attributes:
        width: of the two hidden layers.
        dtype: of the computation; the parameters are float32.
    """

    width: int = 4096
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers; the linear ones have parameters only where they are used."""
        self.trunk = VGG16(self.dtype)
        self.fc1, self.fc2 = (Dense(self.width, dtype=self.dtype) for _ in range(2))
        self.fc3 = Dense(1000, dtype=self.dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """The maps of `VGG16`."""
        return self.trunk(images)

    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1000"]:
        """Unnormalised log-probabilities of the ImageNet classes.

        Images are RGB in [-1, 1], of 224 pixels a side in training; of another size, at least 32,
        the last map is averaged to 7x7 positions, as torchvision does.
        """
        x = nn.max_pool(self.trunk(images)["relu5_3"], (2, 2), strides=(2, 2))
        x = rearrange(_averaged(x), "b h w c -> b (c h w)")
        return self.fc3(nn.relu(self.fc2(nn.relu(self.fc1(x)))))


def _averaged(x: Float[Array, "b _ _ c"]) -> Float[Array, "b 7 7 c"]:
    """Means over 7x7 parts of a map, which overlap where 7 does not divide its sides."""
    for axis in (1, 2):
        side = x.shape[axis]
        parts = np.zeros((_POOLED, side), np.float32)
        for i in range(_POOLED):
            part = slice(i * side // _POOLED, -(-(i + 1) * side // _POOLED))
            parts[i, part] = 1 / (part.stop - part.start)
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(parts, x.dtype), (axis, 1)), -1, axis)
    return x


def load_vgg16(
    file: Path, sha256: str | None = None, dtype: DTypeLike = jnp.float32
) -> tuple[VGG16Classifier, dict[str, Any], str]:
    """VGG16 with weights from a file that the user names.

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
    module = VGG16Classifier(dtype=dtype)
    return module, {"params": vgg16_params(module, state, str(file))}, digest


def vgg16_params(module: VGG16Classifier, state: dict[str, Any], source: str) -> dict[str, Any]:
    """A VGG16's parameters from the state dict of torchvision's.

    Args:
        module: of the width of the state dict.
        state: name -> array.
        source: file that it is from, for the message.

    Raises:
        InputError: the state dict is of another network.
    """
    expected = declared_variables(module)
    # It has no BatchNorms, and so no epsilon of theirs.
    return fold(state, expected["params"], _names, 0.0, source)


def _names(path: tuple[str, ...]) -> tuple[str, None]:
    """Torchvision's name of a layer; it numbers ReLUs, pools and dropouts too."""
    layer = path[-1]
    if layer.startswith("fc"):
        return f"classifier.{3 * (int(layer[2:]) - 1)}", None
    stage, number = map(int, layer.removeprefix("conv").split("_"))
    before = sum(2 * len(widths) + 1 for widths in _STAGES[: stage - 1])
    return f"features.{before + 2 * (number - 1)}", None
