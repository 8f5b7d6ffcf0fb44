"""Convolution with gradients that are fast on a CPU and in float32 for the parameters.

A convolution, its gradient at the input and that at the kernel are three faces of one sum over
products of an input, a kernel and an output: the gradients of each are the other two. So all three
are written down here once, and gradients of gradients are as fast as gradients.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.nn.linear import called_precision, float32_product

Pairs = tuple[tuple[int, int], tuple[int, int]]
Padding = int | tuple[int, int] | Pairs

# Entries of the patches that are multiplied at a time: 4 MiB in float32, which caches hold.
_PATCHES = 2**20


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Where a kernel is put; sides are (height, width).

    Attributes:
        stride: of the kernel's positions.
        margins: zeros before and after each side of the input.
        size: of the kernel.
        inputs: of the input, without the margins.
        precision: that of `jax.default_matmul_precision` where the convolution was called.
    """

    stride: int
    margins: Pairs
    size: tuple[int, int]
    inputs: tuple[int, int]
    precision: str | None = None

    @property
    def outputs(self) -> tuple[int, int]:
        height, width = (
            (n + low + high - k) // self.stride + 1
            for n, (low, high), k in zip(self.inputs, self.margins, self.size, strict=True)
        )
        return height, width

    @property
    def mirrored(self) -> "_Geometry":
        """Of the kernel turned around and moved over the output, its positions the input's cells.

        Without strides only.
        """
        lows = [k - 1 - low for k, (low, _) in zip(self.size, self.margins, strict=True)]
        (top, bottom), (left, right) = (
            (low, n + k - 1 - m - low)
            for low, n, k, m in zip(lows, self.inputs, self.size, self.outputs, strict=True)
        )
        return _Geometry(1, ((top, bottom), (left, right)), self.size, self.outputs)


def convolve(
    x: Float[Array, "b _ _ c"],
    kernel: Float[Array, "height width c features"],
    bias: Float[Array, " features"] | None = None,
    stride: int = 1,
    padding: Padding = 0,
) -> Float[Array, "b _ _ features"]:
    """A convolution of a zero-padded map: one output for each position that the kernel fits in.

    It is computed in the dtype of the map. The gradients of kernel and bias are summed up in
    float32, whatever that is, and have the dtypes of these.

    Args:
        x: padded with `padding` zeros.
        kernel: slid over the map, not flipped.
        bias: added to each channel.
        stride: of the kernel's positions.
        padding: zeros on each side; along (height, width); or before and after along each.
    """
    along = (padding, padding) if isinstance(padding, int) else padding
    top, left = ((p, p) if isinstance(p, int) else p for p in along)
    (_, h, w, _), (height, width) = x.shape, kernel.shape[:2]
    geometry = _Geometry(stride, (top, left), (height, width), (h, w), called_precision())
    y = _convolve(geometry, x, kernel)
    return y if bias is None else _add_bias(y, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: _Geometry, x: Array, kernel: Array) -> Array:
    kernel = kernel.astype(x.dtype)
    if _is_product(geometry):
        return _patches(geometry, x) @ kernel.reshape(-1, kernel.shape[-1])
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(geometry.stride,) * 2,
        padding=geometry.margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry: _Geometry, kernel: Array, g: Array) -> Array:
    """Of `_convolve` at the input, for a gradient `g` of its output; in the dtype of `g`."""
    kernel = jnp.swapaxes(kernel[::-1, ::-1], 2, 3).astype(g.dtype)
    if _is_product(geometry):
        return _patches(geometry.mirrored, g) @ kernel.reshape(-1, kernel.shape[-1])
    stretched = [geometry.stride * (n - 1) + 1 for n in geometry.outputs]
    lows = [k - 1 - low for k, (low, _) in zip(geometry.size, geometry.margins, strict=True)]
    sides = zip(lows, geometry.inputs, geometry.size, stretched, strict=True)
    return jax.lax.conv_general_dilated(
        g,
        kernel,
        window_strides=(1, 1),
        padding=[(low, n + k - 1 - m - low) for low, n, k, m in sides],
        lhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: _Geometry, x: Array, g: Array) -> Array:
    """Of `_convolve` at the kernel, for a gradient `g` of its output; float32."""
    by_products = functools.partial(_kernel_gradient_by_products, geometry)
    if _is_product(geometry):
        return by_products(x, g)
    by_convolution = functools.partial(_kernel_gradient_by_convolution, geometry)
    # XLA's convolution for a CPU takes the batch for the channels here. Where that fills vectors
    # and a cache holds the map, it is up to twice as fast as the products; elsewhere far slower.
    if len(x) >= 16 and x.size <= 2**18:
        return by_convolution(x, g)
    return jax.lax.platform_dependent(x, g, cpu=by_products, default=by_convolution)


def _as_called(backward: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """A backward rule as precise as the call: it is traced later, outside of that's context."""

    def rule(geometry: _Geometry, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
        with jax.default_matmul_precision(geometry.precision):
            return backward(geometry, saved, g)

    return rule


_convolve.defvjp(
    lambda geometry, x, kernel: (_convolve(geometry, x, kernel), (x, kernel)),
    _as_called(
        lambda geometry, saved, g: (
            _input_gradient(geometry, saved[1], g),
            _kernel_gradient(geometry, saved[0], g).astype(saved[1].dtype),
        )
    ),
)
_input_gradient.defvjp(
    lambda geometry, kernel, g: (_input_gradient(geometry, kernel, g), (kernel, g)),
    _as_called(
        lambda geometry, saved, x: (
            _kernel_gradient(geometry, x, saved[1]).astype(saved[0].dtype),
            _convolve(geometry, x, saved[0]),
        )
    ),
)
_kernel_gradient.defvjp(
    lambda geometry, x, g: (_kernel_gradient(geometry, x, g), (x, g)),
    _as_called(
        lambda geometry, saved, kernel: (
            _input_gradient(geometry, kernel, saved[1]),
            _convolve(geometry, saved[0], kernel),
        )
    ),
)


@jax.custom_vjp
def _add_bias(y: Array, bias: Array) -> Array:
    return y + bias.astype(y.dtype)


_add_bias.defvjp(
    lambda y, bias: (_add_bias(y, bias), bias),
    lambda bias, g: (g, jnp.sum(g, (0, 1, 2), jnp.float32).astype(bias.dtype)),
)


def _is_product(geometry: _Geometry) -> bool:
    """True where XLA's convolution for a CPU loses, up to sixty times, to one matrix product.

    That is for a kernel that is larger than the resulting map, and for one of 1x1.
    """
    small = any(n < k for n, k in zip(geometry.outputs, geometry.size, strict=True))
    return geometry.stride == 1 and (geometry.size == (1, 1) or small)


def _patches(geometry: _Geometry, x: Float[Array, "b _ _ c"]) -> Float[Array, "b _ _ kkc"]:
    """The neighbourhood of each position, row by row, along the channels."""
    x = _pad(x, *geometry.margins)
    step = geometry.stride
    height, width = (step * (n - 1) + 1 for n in geometry.outputs)
    shifted = [
        x[:, row : row + height : step, column : column + width : step]
        for row in range(geometry.size[0])
        for column in range(geometry.size[1])
    ]
    return shifted[0] if len(shifted) == 1 else jnp.concatenate(shifted, axis=-1)


def _pad(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """With margins of zeros; a negative margin cuts off."""
    config = ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _kernel_gradient_by_convolution(geometry: _Geometry, x: Array, g: Array) -> Array:
    """As JAX has it: the output's gradient is the kernel, the channels are the batch."""
    stretched = [geometry.stride * (n - 1) + 1 for n in geometry.outputs]
    sides = zip(geometry.inputs, geometry.margins, geometry.size, stretched, strict=True)
    return jax.lax.conv_general_dilated(
        x,
        g,
        window_strides=(1, 1),
        padding=[(low, k - 1 + m - n - low) for n, (low, _), k, m in sides],
        rhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=jnp.float32,
    )


def _kernel_gradient_by_products(geometry: _Geometry, x: Array, g: Array) -> Array:
    """Matrix products of patches and gradients, some rows of the map at a time."""
    channels, features = x.shape[-1], g.shape[-1]
    if features < channels and geometry.stride == 1:
        # Patches of whichever has fewer channels.
        turned = _kernel_gradient_by_products(geometry.mirrored, g, x)
        return jnp.swapaxes(turned[::-1, ::-1], 2, 3)
    step, (height, width) = geometry.stride, geometry.size
    columns = height * width * channels
    parts = 1
    if not _is_product(geometry):
        parts = min(-(-len(g) * g.shape[1] * g.shape[2] * columns // _PATCHES), g.shape[1])
    rows = -(-g.shape[1] // parts)
    # What the kernel sees of the input, for whole parts.
    tall = step * (parts * rows - 1) + height
    wide = step * (g.shape[2] - 1) + width
    top, left = geometry.margins[0][0], geometry.margins[1][0]
    x = _pad(
        x,
        (top, tall - geometry.inputs[0] - top),
        (left, wide - geometry.inputs[1] - left),
    )
    g = _pad(g, (0, parts * rows - g.shape[1]), (0, 0))
    seen = step * (rows - 1) + height
    part = _Geometry(step, ((0, 0), (0, 0)), geometry.size, (seen, wide))

    def product(x: Array, g: Array) -> Float[Array, "features columns"]:
        # The one with fewer columns comes first, for XLA's matrix product is faster so.
        axes = (0, 1, 2)
        return float32_product(g, _patches(part, x), ((axes, axes), ((), ())))

    def add(total: Array, index: Array) -> tuple[Array, None]:
        some = jax.lax.dynamic_slice_in_dim(x, index * rows * step, seen, 1)
        return total + product(some, jax.lax.dynamic_slice_in_dim(g, index * rows, rows, 1)), None

    if parts == 1:
        total = product(x, g)
    else:
        total, _ = jax.lax.scan(add, jnp.zeros((features, columns)), jnp.arange(parts))
    return total.T.reshape(height, width, channels, features)
