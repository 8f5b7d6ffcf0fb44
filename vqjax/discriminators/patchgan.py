"""PatchGAN: a convolutional discriminator with a logit for each of many overlapping patches.

Source: pix2pix (Isola et al. 2017), sections 3.2.2 and 6.1.2; with three layers the discriminator
of VQGAN (Esser et al. 2021).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vqjax.discriminators.normalization import batch_norm
from vqjax.errors import InputError
from vqjax.nn.convolutional import Convolution


class PatchGAN(nn.Module):
    """4x4 convolutions with BatchNorm and leaky ReLU, and a logit for each patch.

    With three layers a patch has 70x70 pixels. Under a sharded batch, BatchNorm takes the
    statistics of the global batch.

    Attributes:
        num_layers: convolutions that halve the map, at least 1.
        width: channels of the first; they double with each layer up to eight times as many.
        dtype: compute dtype; parameters and logits are float32.
    """

    num_layers: int = 3
    width: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"

    frozen: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises InputError for fields out of their range."""
        for name in ("num_layers", "width"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config.tokenizer.discriminator.model.{name}={getattr(self, name)}:"
                    " at least 1 is needed"
                )
        super().__post_init__()

    @nn.nowrap
    def frozen_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        """The frozen parameters, of which there are none."""
        del key
        return {}

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b n"]:
        """Logits of the patches; images in [-1, 1], `train` as in the package's contract.

        Raises:
            InputError: images too small for a single logit.
        """
        height, width = images.shape[1:3]
        needed = 3 * 2**self.num_layers
        if min(height, width) < needed:
            raise InputError(
                f"PatchGAN with {self.num_layers} layers was given images of {height}x{width},"
                f" expected at least {needed}x{needed}; lower"
                " config.tokenizer.discriminator.model.num_layers"
            )

        def convolution(features: int, stride: int, use_bias: bool, name: str) -> Convolution:
            return Convolution(
                features,
                size=4,
                stride=stride,
                padding=1,
                use_bias=use_bias,
                kernel_init=nn.initializers.normal(0.02),
                dtype=self.dtype,
                name=name,
            )

        x = nn.leaky_relu(convolution(self.width, 2, True, "conv0")(images), 0.2)
        for layer in range(1, self.num_layers + 1):
            features = self.width * min(2**layer, 8)
            stride = 2 if layer < self.num_layers else 1
            x = convolution(features, stride, False, f"conv{layer}")(x)
            x = batch_norm(
                not train, dtype=self.dtype, scale_init=_around_one, name=f"norm{layer}"
            )(x)
            x = nn.leaky_relu(x, 0.2)
        x = convolution(1, 1, True, "logits")(x)
        return x.reshape(len(x), -1).astype(jnp.float32)


def _around_one(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike) -> Float[Array, "..."]:
    return 1 + nn.initializers.normal(0.02)(key, shape, dtype)
