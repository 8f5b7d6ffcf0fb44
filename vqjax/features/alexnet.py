"""AlexNet's convolutional trunk, torchvision's variant (Krizhevsky, 2014)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.features.imagenet import standardize
from vqjax.nn.convolutional import Convolution

# Of each convolution: output channels, kernel size, stride, padding, and whether it reads a
# pooled map.
_LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)


class AlexNet(nn.Module):
    """The five convolutions of AlexNet, read out after each ReLU.

    Attributes:
        dtype: of the computation; the parameters are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _ _ _"]]:
        """Feature maps relu1 to relu5.

        Images are RGB in [-1, 1], at least 31 pixels a side; the maps have 64, 192, 384, 256 and
        256 channels at strides 4, 8, 16, 16 and 16.
        """
        x = standardize(images.astype(self.dtype))
        features = {}
        for layer, (width, size, stride, padding, pooled) in enumerate(_LAYERS, start=1):
            if pooled:
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
            convolution = Convolution(
                width, size, stride, padding, dtype=self.dtype, name=f"conv{layer}"
            )
            x = features[f"relu{layer}"] = nn.relu(convolution(x))
        return features
