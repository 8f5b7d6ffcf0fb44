"""StyleGAN2's discriminator: residual blocks that blur before they halve, and one logit an image.

Source: Karras et al. 2020 (StyleGAN2), appendix B and figure 7c, with equalized learning rates
(Karras et al. 2018, section 4.1); channels as in the authors' configuration F. The standard
deviation over a minibatch is left out.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.discriminators.base import Discriminator
from vqjax.errors import FieldError
from vqjax.nn.convolve import Padding, convolve
from vqjax.settings import Range, setting

# The blur along an axis, a binomial filter: it takes out what half as many samples cannot show.
_TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
# Side of the last map, where that of the images is a power of two.
_LAST_SIDE = 4


class StyleGAN2Discriminator(Discriminator):
    """Residual blocks that halve the map down to 4x4, and two linear layers on that.

    It takes images of any shape whose shorter side is 4 to 7 times a power of two that divides both
    sides; the last map has 4 to 7 positions along that side.
    """

    channel_base: int = setting(
        32768, "channels of a map times its side, up to channel_max of them", Range(1)
    )
    channel_max: int = setting(512, "most channels of a map", Range(1))
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters and logits are float32"
    )

    @nn.nowrap
    def check_size(self, height: int, width: int) -> None:
        """Checks that the sides can be halved down to the last map.

        Raises:
            FieldError: they cannot.
        """
        halvings = _halvings(height, width)
        if halvings < 1 or height % 2**halvings or width % 2**halvings:
            raise FieldError(
                "name='stylegan2': images whose sides are at least 8 and multiples of"
                f" {2 ** max(halvings, 1)} are needed, not {height}x{width}; choose another"
                " resolution or another discriminator"
            )

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b 1"]:
        """One logit an image.

        Raises:
            FieldError: as `check_size`.
        """
        del train
        self.check_size(*images.shape[1:3])
        halvings = _halvings(*images.shape[1:3])
        # Of the maps from the images' on.
        widths = [
            max(1, min(self.channel_base // (_LAST_SIDE * 2**level), self.channel_max))
            for level in range(halvings, -1, -1)
        ]
        x = images.astype(self.dtype)
        x = _activate(EqualizedConvolution(widths[0], 1, dtype=self.dtype, name="from_rgb")(x))
        for index, features in enumerate(widths[1:]):
            x = _Block(features, self.dtype, name=f"block{index}")(x)
        last = EqualizedConvolution(widths[-1], 3, padding=1, dtype=self.dtype, name="final_conv")
        x = _activate(last(x))
        # A linear layer on the whole map.
        size = x.shape[1], x.shape[2]
        x = _activate(EqualizedConvolution(widths[-1], size, dtype=self.dtype, name="dense")(x))
        x = EqualizedConvolution(1, 1, dtype=self.dtype, name="logits")(x)
        return x.reshape(-1, 1).astype(jnp.float32)


class EqualizedConvolution(nn.Module):
    """A convolution whose kernel starts with deviation 1 and is scaled down as it is applied.

    So an optimizer that normalises gradients moves the kernels of all layers at the same relative
    speed. The factor is the one of He et al. 2015, the root of the inputs, without its gain.

    Attributes:
        features: output channels.
        size: of the kernel, (height, width) or both.
        stride: of the kernel's positions.
        padding: zeros on each side.
        use_bias: add a bias to each channel.
        dtype: of the convolution; the parameters are float32.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: Padding = 0
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        """The map of every position whose kernel fits into the padded map."""
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        scale = math.prod(shape[:-1]) ** -0.5
        return convolve(x.astype(self.dtype), scale * kernel, bias, self.stride, self.padding)


class _Block(nn.Module):
    """Two convolutions, the second of which halves the map, beside a blurred and halved shortcut.

    Their sum is divided by the root of two, which keeps its variance.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ features"]:
        shortcut = EqualizedConvolution(
            self.features, 1, use_bias=False, dtype=self.dtype, name="shortcut"
        )(blur(x, 1, stride=2))
        first = EqualizedConvolution(x.shape[-1], 3, padding=1, dtype=self.dtype, name="conv_1")
        x = _activate(first(x))
        second = EqualizedConvolution(self.features, 3, stride=2, dtype=self.dtype, name="conv_2")
        x = _activate(second(blur(x, 2)))
        return (x + shortcut) / math.sqrt(2)


def blur(x: Float[Array, "b h w c"], margin: int, stride: int = 1) -> Float[Array, "b _ _ c"]:
    """Each channel smoothed by the filter [1, 3, 3, 1] / 8 along both axes.

    Args:
        x: padded with `margin` zeros on each side.
        margin: at least 0.
        stride: of the filter's positions: 2 for half as many.
    """
    for axis in (1, 2):
        padding = [(margin, margin) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, padding)
        last = padded.shape[axis] - len(_TAPS)
        shifted = [
            tap * jax.lax.slice_in_dim(padded, start, start + last + 1, stride, axis)
            for start, tap in enumerate(_TAPS)
        ]
        x = sum(shifted[1:], shifted[0])
    return x


def _activate(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Leaky ReLU times the root of two, the gain that the layers' factors leave out."""
    return math.sqrt(2) * nn.leaky_relu(x, 0.2)


def _halvings(height: int, width: int) -> int:
    """How often a map is halved until its shorter side is less than 8; below 1 for too small."""
    return (min(height, width) // _LAST_SIDE).bit_length() - 1
