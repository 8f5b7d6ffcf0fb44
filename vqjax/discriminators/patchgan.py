"""PatchGAN: a convolutional discriminator with a logit for each of many overlapping patches.

Source: pix2pix (Isola et al. 2017), sections 3.2.2 and 6.1.2; with three layers the discriminator
of VQGAN (Esser et al. 2021).
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vqjax.discriminators.base import Discriminator
from vqjax.discriminators.normalization import batch_norm
from vqjax.errors import FieldError
from vqjax.nn.convolutional import Convolution
from vqjax.settings import Range, setting


class PatchGAN(Discriminator):
    """4x4 convolutions with BatchNorm and leaky ReLU, and a logit for each patch.

    With three layers a patch has 70x70 pixels. Channels double with each layer up to eight times as
    many as those of the first. Under a sharded batch, BatchNorm takes the statistics of the global
    batch.
    """

    num_layers: int = setting(3, "convolutions that halve the map", Range(1))
    width: int = setting(64, "channels of the first of them", Range(1))
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters and logits are float32"
    )

    @nn.nowrap
    def check_size(self, height: int, width: int) -> None:
        """Checks that there is room for a single logit.

        Raises:
            FieldError: there is not.
        """
        needed = 3 * 2**self.num_layers
        if min(height, width) < needed:
            raise FieldError(
                f"num_layers={self.num_layers}: images of at least {needed}x{needed} are needed,"
                f" not {height}x{width}; set fewer"
            )

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b n"]:
        """Logits of the patches.

        Raises:
            FieldError: as `check_size`.
        """
        self.check_size(*images.shape[1:3])

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
