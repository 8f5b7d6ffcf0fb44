"""VGG16's convolutional trunk (Simonyan and Zisserman, 2015)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.features.imagenet import standardize
from vqjax.nn.convolutional import Convolution

# Output channels of each convolution, one row a resolution.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


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
