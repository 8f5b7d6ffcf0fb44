"""Projected GAN: a discriminator on random projections of a frozen classifier's features.

Source: Sauer et al. 2021, sections 3 and 4 and appendix; details as in the authors' code.
"""

import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqjax.discriminators.base import Discriminator
from vqjax.discriminators.normalization import SpectralConvolution, batch_norm, kaiming_uniform
from vqjax.features.efficientnet_lite import EfficientNetLite, load_efficientnet_lite
from vqjax.settings import setting

_LAYERS = ("stride4", "stride8", "stride16", "stride32")

# Side below which images are enlarged, and the coarsest stride of the features.
_SIZE = 224
_STRIDE = 32

# Channels of the finest mixed map; each coarser one has twice as many.
_WIDTH = 64

# Channels of a head's maps, from the last on, which has about 8x8 positions at 256 pixels.
_HEAD_WIDTHS = (512, 256, 128, 64, 64, 32, 16, 8)
# Halvings of each head's map where their number is fixed: at 256 pixels all maps end at 8x8.
_HALVINGS = (4, 3, 2, 1)


class ProjectedDiscriminator(Discriminator):
    """Four heads on EfficientNet-lite0's features, mixed at random over channels and scales.

    It trains 10.3 million parameters and holds 3.3 million frozen ones. The authors found the same
    heads best at every resolution, so that larger images have more logits. Under a sharded batch,
    BatchNorm takes the statistics of the global batch, or of each microbatch.
    """

    head_depth: Literal["fixed", "by_size"] = setting(
        "fixed",
        "how often the heads halve their maps: 4, 3, 2 and 1 times, or until about 8 positions a"
        " side are left. It matters above 256 pixels, where the former gives more logits",
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype of the heads; parameters and logits are float32"
    )
    frozen_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "compute dtype of EfficientNet and projections. In bfloat16 the gradient at the images"
        " points elsewhere (a cosine of 0.84 with that of float32)",
    )

    frozen: ClassVar[tuple[str, ...]] = ("backbone", "projection")

    @nn.nowrap
    def frozen_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        """EfficientNet-lite0's published weights, and projections drawn from the key.

        Raises:
            InputError: if the weights are missing or are not the expected ones.
        """
        module, variables = load_efficientnet_lite("lite0")
        backbone = {
            name: value
            for name, value in variables["params"].items()
            if name not in ("head", "classifier")
        }
        images = jax.ShapeDtypeStruct((1, 2 * _STRIDE, 2 * _STRIDE, 3), jnp.float32)
        features = jax.eval_shape(module.apply, {"params": backbone}, images)
        maps = [jnp.zeros(features[layer].shape) for layer in _LAYERS]
        # Jitted, so that the maps themselves are not computed.
        projection = jax.jit(_Projection().init)(key, maps)
        # On the host: whoever runs on several of them places them itself.
        return {"backbone": backbone, "projection": jax.device_get(projection["params"])}

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b n"]:
        """Logits of the four heads.

        Images are enlarged bilinearly to at least 224 pixels a side, and to sides that the coarsest
        stride of 32 divides. A head's last map has 7x7 positions of 224x224 images, and 8x8 of
        256x256, which give it 16 and 25 logits.
        """
        # Of the gradient at images of 256x256, the cosine with that of float32: 0.84 with
        # EfficientNet in bfloat16, 0.997 with the projections in it, 0.998 with the heads alone.
        # With float32's products as accelerators round them by default it would be 0.995 (a GPU's
        # TF32) or 0.95 (a TPU's bfloat16).
        with jax.default_matmul_precision("float32"):
            features = EfficientNetLite(dtype=self.frozen_dtype, name="backbone")(_enlarge(images))
            maps = _Projection(dtype=self.frozen_dtype, name="projection")(
                [features[layer] for layer in _LAYERS]
            )
        halvings = _HALVINGS if self.head_depth == "fixed" else map(_halvings_to_8, maps)
        logits = [
            _Head(number, self.dtype, name=f"head{index}")(x, train)
            for index, (number, x) in enumerate(zip(halvings, maps, strict=True))
        ]
        return jnp.concatenate(logits, axis=1)


def _enlarge(images: Float[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
    shorter = min(images.shape[1:3])
    sides = [
        math.ceil(side * max(shorter, _SIZE) / (shorter * _STRIDE)) * _STRIDE
        for side in images.shape[1:3]
    ]
    return jax.image.resize(images, (len(images), *sides, images.shape[3]), "bilinear")


class _Projection(nn.Module):
    """Frozen 1x1 convolutions that mix the channels of each map and, from coarse to fine, the maps.

    Source: section 3.2, cross-channel and cross-scale mixing.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ _"]]:
        """Maps of 64, 64, 128 and 256 channels, twice the resolution of the features."""
        coarser: Array | float = 0.0
        maps = []
        for index, feature in reversed(list(enumerate(features))):
            width = _WIDTH * 2**index
            x = self._convolve(feature, width, f"channel_mixing{index}") + coarser
            # The authors enlarge first: the same map at four times the cost, as interpolation and
            # a 1x1 convolution commute.
            x = self._convolve(x, max(width // 2, _WIDTH), f"scale_mixing{index}")
            coarser = _double(x)
            maps.append(coarser)
        return maps[::-1]

    def _convolve(
        self, x: Float[Array, "b h w _"], features: int, name: str
    ) -> Float[Array, "b h w _"]:
        bound = x.shape[-1] ** -0.5
        return nn.Dense(
            features,
            kernel_init=kaiming_uniform,
            bias_init=lambda key, shape, dtype: jax.random.uniform(
                key, shape, dtype, -bound, bound
            ),
            dtype=self.dtype,
            name=name,
        )(x)


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """A map at twice the resolution, bilinear, its corners staying where they are."""
    batch, height, width, channels = x.shape
    scale = jnp.array([(2 * side - 1) / (side - 1) for side in (height, width)])
    return jax.image.scale_and_translate(
        x,
        (batch, 2 * height, 2 * width, channels),
        spatial_dims=(1, 2),
        scale=scale,
        # Pixels' centres are at halves.
        translation=(1 - scale) / 2,
        method="linear",
        antialias=False,
    )


def _halvings_to_8(x: Float[Array, "b _ _ _"]) -> int:
    """How often a map is halved to 8 positions of its shorter side, or about as many."""
    return max(0, round(math.log2(min(x.shape[1:3]) / 8)))


class _Head(nn.Module):
    """One head: convolutions that halve a map, and a logit for each 4x4 positions of the last.

    Attributes:
        halvings: how many convolutions halve it.
        dtype: compute dtype.
    """

    halvings: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"], train: bool) -> Float[Array, "b n"]:
        for index in range(self.halvings):
            x = SpectralConvolution(
                _HEAD_WIDTHS[self.halvings - 1 - index],
                4,
                stride=2,
                padding=1,
                dtype=self.dtype,
                name=f"conv{index}",
            )(x, train)
            x = batch_norm(not train, dtype=self.dtype, name=f"norm{index}")(x)
            x = nn.leaky_relu(x, 0.2)
        x = SpectralConvolution(1, 4, dtype=self.dtype, name="logits")(x, train)
        return x.reshape(len(x), -1).astype(jnp.float32)
