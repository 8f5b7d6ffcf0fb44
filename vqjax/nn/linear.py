"""Linear layers and embeddings whose parameters have float32 gradients in any compute dtype.

`flax.linen`'s cast a parameter to the compute dtype first, so that in bfloat16 its gradient is made
in bfloat16: a bias's and an embedding's as a sum over the whole batch, which stops to grow where
the next term is below half a digit of it, and a kernel's rounded before devices add up theirs. Here
activations alone are of the compute dtype. Names, shapes and first values of parameters are
flax's, and in float32 all numbers.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# A kernel's name where it is a matrix (outputs, inputs).
_TRANSPOSED = "transposed_kernel"


def add_parameter(x: Float[Array, "*shape"], value: Float[Array, "..."]) -> Float[Array, "*shape"]:
    """A parameter added to activations, in their dtype.

    Args:
        x: activations.
        value: float32; broadcasts to the shape of `x`. Its gradient is summed in float32.
    """
    # In this order: what broadcasts first is summed last, after the gradient's cast.
    return x + jnp.broadcast_to(value, x.shape).astype(x.dtype)


def float32_product(a: Array, b: Array, dimensions: jax.lax.DotDimensionNumbers) -> Array:
    """A product of arrays of one dtype, float32 whatever that is.

    Args:
        a: the left factor.
        b: the right one.
        dimensions: as of `jax.lax.dot_general`.
    """

    def product(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

    def widened(a: Array, b: Array) -> Array:
        return product(a.astype(jnp.float32), b.astype(jnp.float32))

    # XLA's CPU lacks products of bfloat16 to float32 in some layouts, and gains nothing by them.
    return jax.lax.platform_dependent(a, b, cpu=widened, default=product)


def called_precision() -> str | None:
    """That of `jax.default_matmul_precision` here, for a backward rule, which is traced later."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def contract(x: Float[Array, "..."], kernel: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """The product of activations and a kernel, in the dtype of the activations.

    Args:
        x: (*b, *inputs).
        kernel: (*inputs, *outputs), float32; its gradient is that of the matrix product's sums,
            not rounded.
        axes: how many there are of `inputs`.

    Returns:
        (*b, *outputs).
    """
    return _contract(axes, called_precision(), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _contract(axes: int, precision: str | None, x: Array, kernel: Array) -> Array:
    return jnp.tensordot(x, kernel.astype(x.dtype), axes)


def _contract_forward(
    axes: int, precision: str | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel.astype(x.dtype)
    return jnp.tensordot(x, kernel, axes), (x, kernel)


def _contract_backward(
    axes: int, precision: str | None, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    outputs, batch = kernel.ndim - axes, tuple(range(x.ndim - axes))
    turned = jnp.moveaxis(kernel, range(axes), range(-axes, 0))
    with jax.default_matmul_precision(precision):
        to_x = jnp.tensordot(gradient, turned, outputs)
        to_kernel = float32_product(gradient, x, ((batch, batch), ((), ())))
    # In this order, that of JAX's own rule, the sums are its own to the last digit.
    return to_x, jnp.moveaxis(to_kernel, range(outputs), range(axes, kernel.ndim))


_contract.defvjp(_contract_forward, _contract_backward)


class DenseGeneral(nn.Module):
    """`flax.linen.DenseGeneral` over the last axes.

    Its parameters may be those of `transposed`, which are not for training.

    Attributes:
        features: width of the output, or its shape.
        num_axes: how many axes at the end of the input are those of one vector.
        use_bias: add a bias.
        dtype: compute dtype; parameters and their gradients are float32.
        kernel_init: initialiser of the kernel, as a matrix.
        bias_init: initialiser of the bias.
    """

    features: int | tuple[int, ...]
    num_axes: int = 1
    use_bias: bool = True
    dtype: DTypeLike = "float32"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The axes at the end, (*inputs), become (*features)."""
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        inputs = x.shape[-self.num_axes :]

        def init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            matrix = math.prod(inputs), math.prod(features)
            return self.kernel_init(key, matrix, dtype).reshape(shape)

        x = x.astype(self.dtype)
        if self.has_variable("params", _TRANSPOSED):
            matrix: Array = self.get_variable("params", _TRANSPOSED)
            lead = x.shape[: -self.num_axes]
            y = _row_products(x.reshape(*lead, -1), matrix).reshape(*lead, *features)
        else:
            kernel = self.param("kernel", init, (*inputs, *features), jnp.float32)
            y = contract(x, kernel, self.num_axes)
        if not self.use_bias:
            return y
        return add_parameter(y, self.param("bias", self.bias_init, features, jnp.float32))


class Dense(DenseGeneral):
    """`flax.linen.Dense`: a `DenseGeneral` over the last axis."""


class Embed(nn.Module):
    """`flax.linen.Embed`: vectors of given numbers.

    Attributes:
        num_embeddings: rows of the table.
        features: width of a vector.
        dtype: of the vectors; the table and its gradient are float32.
        embedding_init: initialiser of the table.
    """

    num_embeddings: int
    features: int
    dtype: DTypeLike = "float32"
    embedding_init: Initializer = nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", out_axis=0
    )

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", self.embedding_init, shape, jnp.float32)

    def __call__(self, ids: Int[Array, "*n"]) -> Float[Array, "*n features"]:
        """The vectors; of a number beyond the table NaN."""
        # Looked up before the cast, so that the gradients of one row's uses are added in float32.
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def attend(self, x: Float[Array, "*b features"]) -> Float[Array, "*b num_embeddings"]:
        """The product of vectors with every row of the table, float32: logits of a tied head."""
        return _row_products(x.astype(jnp.float32), self.embedding)


def _row_products(
    x: Float[Array, "*b inputs"], matrix: Float[Array, "outputs inputs"]
) -> Float[Array, "*b outputs"]:
    """Of each vector with each row, in the dtype of the vectors.

    Not a product with the transposed matrix, which XLA's CPU would make first in every call.
    """
    return jnp.tensordot(x, matrix.astype(x.dtype), (-1, -1))


def transposed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a model with the kernels of its `DenseGeneral` as matrices (outputs, inputs).

    What such a layer makes of them is the same. Few vectors at a time are bound by the reading of
    the kernel, and XLA's CPU reads it in this order up to twice as fast.

    Args:
        params: of a model all of whose kernels are of such layers, with a bias.
    """

    def of_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
        kernel, bias = layer["kernel"], layer["bias"]
        # Otherwise the compiler transposes it where it is used: in each turn of a loop.
        matrix = jax.lax.optimization_barrier(kernel.reshape(-1, bias.size).T)
        return {_TRANSPOSED: matrix, "bias": bias}

    if "kernel" in params:
        return of_layer(params)
    return {
        name: transposed(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
    }
