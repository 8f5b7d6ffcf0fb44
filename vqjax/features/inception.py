"""Inception-v3 as of 2015-12-05: the network of FID and of the Inception Score.

It is that of Szegedy et al. (2016), but for its pooling: averages are over the map alone, not over
the zeros around it, and the last block takes the maximum. A published FID is on these weights.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.features.folding import fold
from vqjax.features.weight_files import NamedWeights, declared_variables
from vqjax.nn.convolutional import Convolution

Resize = Literal["torch", "tf", "clean"]

# The side in pixels of the images that the network sees.
INPUT_SIZE = 299

# The graph of 2015, converted by the authors of pytorch-fid.
WEIGHTS = NamedWeights(
    network="Inception-v3 (2015-12-05)",
    address="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    prefixes=("6726825d",),
)
_BATCH_NORM_EPSILON = 1e-3

# A layer is its output channels and the sizes of its kernels, whose maps are put side by side.
_Layer = tuple[int, *tuple[tuple[int, int], ...]]
_Branches = tuple[tuple[str, tuple[_Layer, ...]], ...]
_POINT, _SQUARE = (1, 1), (3, 3)
_ROW, _COLUMN = (1, 7), (7, 1)


def _block_a() -> _Branches:
    """Branches of a block A, on maps of stride 8."""
    return (
        ("branch1x1", ((64, _POINT),)),
        ("branch5x5", ((48, _POINT), (64, (5, 5)))),
        ("branch3x3dbl", ((64, _POINT), (96, _SQUARE), (96, _SQUARE))),
    )


def _block_c(width: int) -> _Branches:
    """Branches of a block C, on maps of stride 16."""
    first, rows, columns = (width, _POINT), (width, _ROW), (width, _COLUMN)
    return (
        ("branch1x1", ((192, _POINT),)),
        ("branch7x7", (first, rows, (192, _COLUMN))),
        ("branch7x7dbl", (first, columns, rows, columns, (192, _ROW))),
    )


def _block_e() -> _Branches:
    """Branches of a block E, on maps of stride 32."""
    fork = (384, (1, 3), (3, 1))
    return (
        ("branch1x1", ((320, _POINT),)),
        ("branch3x3", ((384, _POINT), fork)),
        ("branch3x3dbl", ((448, _POINT), (384, _SQUARE), fork)),
    )


_BLOCK_B: _Branches = (
    ("branch3x3", ((384, _SQUARE),)),
    ("branch3x3dbl", ((64, _POINT), (96, _SQUARE), (96, _SQUARE))),
)
_BLOCK_D: _Branches = (
    ("branch3x3", ((192, _POINT), (320, _SQUARE))),
    ("branch7x7x3", ((192, _POINT), (192, _ROW), (192, _COLUMN), (192, _SQUARE))),
)
# Of each block: its branches; the pooling of the last branch, and the channels that this is
# brought to. Without them the block halves the map: its last layers stride.
_BLOCKS: dict[str, tuple[_Branches, str, int | None]] = {
    "Mixed_5b": (_block_a(), "average", 32),
    "Mixed_5c": (_block_a(), "average", 64),
    "Mixed_5d": (_block_a(), "average", 64),
    "Mixed_6a": (_BLOCK_B, "maximum", None),
    "Mixed_6b": (_block_c(128), "average", 192),
    "Mixed_6c": (_block_c(160), "average", 192),
    "Mixed_6d": (_block_c(160), "average", 192),
    "Mixed_6e": (_block_c(192), "average", 192),
    "Mixed_7a": (_BLOCK_D, "maximum", None),
    "Mixed_7b": (_block_e(), "average", 192),
    "Mixed_7c": (_block_e(), "maximum", 192),
}


class InceptionV3(nn.Module):
    """A frozen Inception-v3; its BatchNorms are folded into the convolutions.

    Attributes:
        resize: the method that makes images 299x299, and the scale of the network's input:
            "torch", as pytorch-fid: bilinear; [-1, 1] as it is.
            "tf", as the graph of 2015 itself, and ADM's evaluator: TensorFlow 1's bilinear, which
                samples at i * size / 299; 8-bit values less 128, by 128.
            "clean", as clean-fid: Pillow's antialiased bicubic, kept in range; values as of "tf".
            Those of torch and tf are not antialiased (Parmar et al., 2022).
        dtype: of the computation; the parameters are float32.
    """

    resize: Resize = "torch"
    dtype: DTypeLike = jnp.float32

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        """The last map averaged over its positions (pool3), of RGB in [-1, 1] of any size."""
        return self.pooled(images)[0]

    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1008"]:
        """The logits of `pooled` alone."""
        return self.pooled(images)[1]

    @nn.compact
    def pooled(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """Features and logits in one pass, float32; images as in `__call__`.

        The logits lack the classifier's bias: the Inception Score has been taken of those from the
        start (Salimans et al., 2016, in their code; ADM's evaluator).
        """

        def convolution(
            name: str, features: int, size: int, stride: int = 1, padding: int = 0
        ) -> Callable[[Float[Array, "b _ _ _"]], Float[Array, "b _ _ _"]]:
            layer = Convolution(features, size, stride, padding, dtype=self.dtype, name=name)
            return lambda x: nn.relu(layer(x))

        # By default a float32 product has fewer digits on a TPU, and on some GPUs.
        with jax.default_matmul_precision("float32"):
            x = to_input(images, self.resize).astype(self.dtype)
            x = convolution("Conv2d_1a_3x3", 32, 3, stride=2)(x)
            # Two layers are without padding. Padded and cropped, it is the same: XLA's CPU
            # convolution of large maps takes up to four times as long without.
            x = convolution("Conv2d_2a_3x3", 32, 3, padding=1)(x)[:, 1:-1, 1:-1]
            x = convolution("Conv2d_2b_3x3", 64, 3, padding=1)(x)
            x = _max_pool(x, stride=2)
            x = convolution("Conv2d_3b_1x1", 80, 1)(x)
            x = convolution("Conv2d_4a_3x3", 192, 3, padding=1)(x)[:, 1:-1, 1:-1]
            x = _max_pool(x, stride=2)
            for name, (branches, pool, pool_features) in _BLOCKS.items():
                x = _Block(branches, pool, pool_features, self.dtype, name=name)(x)
            features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
            classifier = nn.Dense(1008, use_bias=False, dtype=jnp.float32, name="fc")
            return features, classifier(features)


class _Block(nn.Module):
    """An Inception block: branches of convolutions and one of pooling, along the channels."""

    branches: _Branches
    pool: str
    pool_features: int | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        halves = self.pool_features is None

        def layer(
            x: Float[Array, "b _ _ _"], name: str, features: int, size: tuple[int, int], last: bool
        ) -> Float[Array, "b _ _ _"]:
            stride = 2 if last and halves else 1
            padding = (size[0] // 2, size[1] // 2) if stride == 1 else 0
            return Convolution(features, size, stride, padding, dtype=self.dtype, name=name)(x)

        maps = []
        for branch, layers in self.branches:
            y = x
            for index, (features, *sizes) in enumerate(layers, start=1):
                name = f"{branch}_{index}" if len(layers) > 1 else branch
                names = [f"{name}a", f"{name}b"] if len(sizes) > 1 else [name]
                forks = [
                    layer(y, name, features, size, index == len(layers))
                    for name, size in zip(names, sizes, strict=True)
                ]
                y = nn.relu(jnp.concatenate(forks, axis=-1))
            maps.append(y)
        if self.pool_features is None:
            maps.append(_max_pool(x, stride=2))
        elif self.pool == "maximum":
            y = layer(_max_pool(x), "branch_pool", self.pool_features, _POINT, True)
            maps.append(nn.relu(y))
        else:
            # Averaging changes places with what is linear in each position: fewer channels.
            y = layer(x, "branch_pool", self.pool_features, _POINT, True)
            maps.append(nn.relu(_average_pool(y)))
        return jnp.concatenate(maps, axis=-1)


def _max_pool(x: Float[Array, "b _ _ c"], stride: int = 1) -> Float[Array, "b _ _ c"]:
    """The maximum of 3x3 positions; with a stride of 1 also around those at the border."""
    return _pool(x, jnp.maximum, -jnp.inf, stride)


def _average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The average of those of 3x3 positions that are on the map."""
    count = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), jnp.add, 0.0, 1)
    return _pool(x, jnp.add, 0.0, 1) / count


def _pool(
    x: Float[Array, "b _ _ c"], combine: Callable[..., Any], outside: float, stride: int
) -> Float[Array, "b _ _ c"]:
    # Shifted maps, combined along one axis after the other: on a CPU three times as fast as XLA's
    # reduction of windows.
    for axis in (1, 2):
        if stride == 1:
            margins = [(1, 1) if i == axis else (0, 0) for i in range(4)]
            x = jnp.pad(x, margins, constant_values=outside)
        last = x.shape[axis] - 3
        shifted = [
            jax.lax.slice_in_dim(x, start, start + last + 1, stride, axis) for start in range(3)
        ]
        x = functools.reduce(combine, shifted)
    return x


def to_input(images: Float[Array, "b h w 3"], resize: Resize) -> Float[Array, "b _ _ 3"]:
    """The network's input: images in [-1, 1], resized and scaled; see `InceptionV3.resize`."""
    height, width = (_resizing(side, resize) for side in images.shape[1:3])
    images = jnp.einsum("bhwc,hy,wx->byxc", images, height, width, precision="highest")
    if resize == "torch":
        return images
    # From 8-bit values, which 127.5 * images + 127.5 are.
    return (127.5 * jnp.clip(images, -1, 1) - 0.5) / 128


def _resizing(size: int, resize: Resize) -> Float[Array, "{size} new"]:
    """The matrix that resizes an axis: the weight of each old pixel in each new one."""
    ratio = size / INPUT_SIZE
    half = 0.0 if resize == "tf" else 0.5
    position = (np.arange(INPUT_SIZE) + half) * ratio - half
    if resize == "clean":
        x = np.abs(np.arange(size)[:, None] - position) / max(ratio, 1)
        # Keys's cubic of a = -1/2, wider where there are fewer new pixels.
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    else:
        position = np.clip(position, 0, size - 1)
        weights = np.maximum(1 - np.abs(np.arange(size)[:, None] - position), 0)
    return jnp.asarray(weights / weights.sum(axis=0), jnp.float32)


def load_inception(
    file: Path,
    resize: Resize = "torch",
    sha256: str | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[InceptionV3, dict[str, Any], str]:
    """Inception-v3 with weights from a file that the user names.

    Args:
        file: pytorch-fid's state dict, or an .npz file of its arrays.
        resize: see `InceptionV3`.
        sha256: see `NamedWeights.read`.
        dtype: of the computation.

    Returns:
        The module, its variables, numpy arrays on the host, and the file's sha256. Place the
        variables once (`jax.device_put`) and pass them to jitted functions as an argument. They are
        not to be trained.

    Raises:
        InputError: as `NamedWeights.read`; the file is of another network.
    """
    state, digest = WEIGHTS.read(file, sha256)
    module = InceptionV3(resize, dtype)
    expected = declared_variables(module, "pooled", INPUT_SIZE)
    params = fold(state, expected["params"], _names, _BATCH_NORM_EPSILON, str(file))
    return module, {"params": params}, digest


def _names(path: tuple[str, ...]) -> tuple[str, str | None]:
    """The file's names of a layer and its BatchNorm."""
    if path == ("fc",):
        return "fc", None
    layer = ".".join(path)
    return f"{layer}.conv", f"{layer}.bn"
