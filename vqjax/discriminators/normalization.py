"""Batch and spectral normalisation whose state may be left as it is.

Flax's own layers refuse to use the statistics of the batch without updating the running ones, as
the generator's step needs it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from vqjax.nn.convolutional import convolve

# PyTorch's initialisation of a convolution, Kaiming uniform with a = sqrt(5).
kaiming_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nn.Module):
    """Normalises each channel by its mean and variance over the batch and the positions.

    In a jitted function over a sharded batch the statistics are those of the global batch.

    Attributes:
        momentum: share of the old running average that an update keeps.
        epsilon: added to the variance.
        scale_init: initialiser of the scale.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Normalises in float32; returns the dtype of `x`.

        With `train` by the batch, updating the running averages if "batch_stats" is mutable, and
        otherwise by the running averages.

        Source: Ioffe and Szegedy 2015, algorithm 1.
        """
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        average_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        average_variance = self.variable("batch_stats", "variance", jnp.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        if train:
            mean, variance = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                for average, new in ((average_mean, mean), (average_variance, variance)):
                    average.value = self.momentum * average.value + (1 - self.momentum) * new
        else:
            mean, variance = average_mean.value, average_variance.value
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(x.dtype)


class SpectralConvolution(nn.Module):
    """A square convolution without bias whose kernel is divided by its largest singular value.

    The kernel is taken as a matrix of output channels by everything else, and its singular value
    from one power iteration a call, which "batch_stats" carries on.

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

        With `train` the power iteration is kept if "batch_stats" is mutable.

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
        if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
            left.value = new_left
        kernel = kernel / (right @ matrix @ new_left)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, self.stride, self.padding)


def _unit(vector: Float[Array, "n"]) -> Float[Array, "n"]:
    return vector / (jnp.linalg.norm(vector) + 1e-12)
