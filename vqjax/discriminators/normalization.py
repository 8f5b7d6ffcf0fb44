"""Batch and spectral normalisation as PyTorch has them, in which the discriminators are published.

Both read and write the collection "batch_stats", which has to be mutable in training.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.nn.convolve import convolve

# Statistics of the whole batch, also of one that is sharded in a jitted function, in two passes:
# the difference of squares loses digits.
batch_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)

# The initialisation of a convolution, Kaiming uniform with a = sqrt(5).
kaiming_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class SpectralConvolution(nn.Module):
    """A square convolution without bias whose kernel is divided by its largest singular value.

    The kernel is taken as a matrix of everything else by output channels, and its singular value
    from one power iteration a call, which "batch_stats" carries on.

    Not `flax.linen.SpectralNorm`: its `init` leaves the kernel divided by a first estimate, about
    1.7 times the published initialisation, and Adam's steps are that much smaller beside it.

    Attributes:
        features: output channels.
        size: of the kernel.
        stride: of the kernel's positions.
        padding: zeros on each side.
        dtype: of the convolution; the parameters and the singular value are float32.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"], train: bool) -> Float[Array, "b _ _ _"]:
        """The map of every position whose kernel fits into the padded map.

        With `train` the power iteration is kept.

        Source: Miyato et al. 2018, algorithm 1.
        """
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_uniform, shape)
        left = self.variable(
            "batch_stats",
            "left",
            lambda: _unit(jax.random.normal(self.make_rng("params"), (self.features,))),
        )
        matrix = kernel.reshape(-1, self.features)
        constant = jax.lax.stop_gradient(matrix)
        right = _unit(constant @ left.value)
        new_left = _unit(right @ constant)
        if train and not self.is_initializing():
            left.value = new_left
        kernel = kernel / (right @ matrix @ new_left)
        return convolve(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)


def _unit(vector: Float[Array, "n"]) -> Float[Array, "n"]:
    return vector / (jnp.linalg.norm(vector) + 1e-12)
