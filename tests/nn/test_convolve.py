"""Convolutions and their gradients, against JAX's own."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced import products

from vqjax.nn import convolve as module
from vqjax.nn.convolutional import Convolution
from vqjax.nn.convolve import convolve

# Sides and channels of the input, of the kernel, output channels, stride, padding.
CASES = {
    "3x3": (9, 8, 3, 3, 3, 5, 1, 1),
    "fewer channels come out": (9, 8, 6, 3, 3, 2, 1, 1),
    "fewer channels, uneven": (7, 9, 5, 2, 4, 2, 1, ((1, 2), (0, 3))),
    "even, stride 2": (10, 8, 3, 4, 4, 5, 2, 1),
    "rows that no position sees": (10, 9, 3, 3, 3, 2, 4, (0, 1)),
    "below and to the right": (8, 8, 3, 3, 3, 4, 2, ((0, 1), (0, 1))),
    "1x1": (4, 5, 3, 1, 1, 4, 1, 0),
    "larger than the result": (5, 4, 3, 4, 4, 6, 1, (0, 1)),
    "more padding than kernel": (6, 6, 3, 2, 2, 2, 1, 3),
}


def drawn(shape, seed, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def plain(x, kernel, bias, stride, padding):
    pairs = padding if isinstance(padding, tuple) else (padding, padding)
    pairs = [p if isinstance(p, tuple) else (p, p) for p in pairs]
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pairs, None, None, names) + bias


def close(found, expected, rtol=2e-6):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("case", "batch"), [*((case, 2) for case in CASES), ("even, stride 2", 16)]
)
def test_gradients_and_gradients_of_these(case, batch, monkeypatch):
    height, width, channels, *size, features, stride, padding = CASES[case]
    x, kernel = drawn((batch, height, width, channels), 0), drawn((*size, channels, features), 1)
    bias = drawn((features,), 2)
    # Two rows of the map at a time, the last of which may be one.
    shape = jax.eval_shape(lambda: plain(x, kernel, bias, stride, padding)).shape
    columns = math.prod(size) * min(channels, features)
    monkeypatch.setattr(module, "_PATCHES", batch * 2 * shape[2] * columns)

    @jax.jit
    def all_of(x, kernel, bias):
        def everything(convolution):
            def loss(x, kernel, bias):
                return jnp.sum(jnp.sin(convolution(x, kernel, bias, stride, padding)))

            def penalty(*args):
                return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, (0, 1))(*args))

            y = convolution(x, kernel, bias, stride, padding)
            return y, *(jax.grad(f, (0, 1, 2))(x, kernel, bias) for f in (loss, penalty))

        return everything(convolve), everything(plain)

    ours, theirs = all_of(x, kernel, bias)
    for found, expected, rtol in zip(ours, theirs, (2e-6, 5e-6, 5e-5), strict=True):
        close(found, expected, rtol)


@pytest.mark.parametrize(("batch", "size"), [(2, 3), (16, 3), (2, 1)])
def test_gradients_of_parameters_are_summed_in_float32(batch, size):
    # An odd side: so many ones are no bfloat16.
    x = jnp.ones((batch, 23, 23, 2), jnp.bfloat16)
    kernel, bias = jnp.ones((size, size, 2, 3)), jnp.zeros(3)

    @jax.jit
    def results(x, kernel, bias):
        y, pull_back = jax.vjp(lambda *args: convolve(*args), x, kernel, bias)
        return y, *pull_back(jnp.ones_like(y))

    y, dx, *gradients = results(x, kernel, bias)
    assert dx.dtype == y.dtype == jnp.bfloat16
    for gradient in gradients:
        assert gradient.dtype == jnp.float32
        np.testing.assert_array_equal(gradient, y[..., 0].size)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Convolution(5, 3, padding=1), nn.Conv(5, (3, 3))),
        (Convolution(5, 3, 2, ((0, 1), (0, 1))), nn.Conv(5, (3, 3), 2, ((0, 1), (0, 1)))),
        (Convolution(5, (1, 4), padding=(0, 1)), nn.Conv(5, (1, 4), padding=((0, 0), (1, 1)))),
    ],
)
def test_layer_is_that_of_flax(ours, theirs):
    x = drawn((2, 8, 6, 3), 0)
    variables = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x))
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


def test_programs_of_other_machines_have_their_own_gradient():
    def gradient(kernel, x):
        return jax.grad(lambda kernel: convolve(x, kernel).sum())(kernel)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 2, 2), (1, 9, 9, 2))]
    traced = jax.jit(gradient).trace(*shapes)
    programs = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert "dot_general" in programs["cpu"]
    assert "dot_general" not in programs["tpu"]


def test_gradients_are_as_precise_as_the_call():
    def total(x, kernel):
        with jax.default_matmul_precision("highest"):
            y = convolve(x, kernel, padding=1)
        return jnp.sum(y)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 9, 9, 2), (3, 3, 2, 2))]
    program = jax.make_jaxpr(jax.grad(total, (0, 1)))(*shapes).jaxpr
    precisions = [product.params["precision"] for product in products(program)]
    highest = jax.lax.Precision.HIGHEST
    assert len(precisions) >= 3 and set(precisions) == {(highest, highest)}
