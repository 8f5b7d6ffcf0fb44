"""Linear layers and embeddings: flax's in float32, and float32 gradients in bfloat16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced import products

from vqjax.nn import linear

LAYERS = {
    "dense": (nn.Dense(6), linear.Dense(6)),
    "no bias": (nn.Dense(6, use_bias=False), linear.Dense(6, use_bias=False)),
    "axes out": (nn.DenseGeneral((3, 2, 4)), linear.DenseGeneral((3, 2, 4))),
    "axes in": (nn.DenseGeneral(6, axis=(-2, -1)), linear.DenseGeneral(6, num_axes=2)),
}


def gradients(layer, x, weights):
    """Parameters; the output, and the gradients of its sum with weights by parameters and input."""
    variables = layer.init(jax.random.key(0), x)

    def total(variables, x):
        y = layer.apply(variables, x)
        return jnp.sum(y * weights[: y.size].reshape(y.shape)), y

    # The input of an embedding has no gradient.
    arguments = (0,) if jnp.issubdtype(x.dtype, jnp.integer) else (0, 1)
    run = jax.jit(jax.grad(total, argnums=arguments, has_aux=True))
    return variables["params"], *run(variables, x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_layer_is_flax_s_in_float32_to_the_last_digit(name):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((5, 7, 3, 4), 5000))
    theirs, ours = (gradients(layer, x, weights) for layer in LAYERS[name])
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_embedding_is_flax_s_in_float32_to_the_last_digit():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 5, (20, 30)))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=2400), jnp.float32)
    theirs, ours = (gradients(embed(5, 4), ids, weights) for embed in (nn.Embed, linear.Embed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", ["dense", "axes out", "axes in"])
def test_gradients_of_bfloat16_layers_are_sums_in_float32(name):
    """Of many terms: in bfloat16 a sum of ones ends at 256."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 2, (64, 128, 3, 4)), jnp.bfloat16)
    weights = jnp.asarray(rng.uniform(0, 2, 64 * 128 * 3 * 24), jnp.bfloat16)
    layer = LAYERS[name][1].clone(dtype="bfloat16")
    params, (to_variables, to_x), y = gradients(layer, x, weights)
    to_params = to_variables["params"]
    assert y.dtype == to_x.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((params, to_params))} == {jnp.dtype("float32")}

    inputs, outputs = params["kernel"].shape[: layer.num_axes], params["bias"].shape
    flat_x = np.asarray(x, np.float64).reshape(-1, np.prod(inputs))
    flat_weights = np.asarray(weights[: y.size], np.float64).reshape(-1, np.prod(outputs))
    kernel = np.asarray(params["kernel"].astype(jnp.bfloat16), np.float64)
    expected = (flat_x.T @ flat_weights).reshape(kernel.shape)
    np.testing.assert_allclose(to_params["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(to_params["bias"], flat_weights.sum(0).reshape(outputs), rtol=1e-5)
    expected = (flat_weights @ kernel.reshape(flat_x.shape[1], -1).T).reshape(x.shape)
    np.testing.assert_allclose(np.asarray(to_x, np.float64), expected, rtol=1e-2, atol=1e-2)


def test_the_gradient_of_an_embedding_is_a_sum_in_float32_for_any_compute_dtype():
    ids = jnp.zeros((64, 128), jnp.int32)
    weights = jnp.asarray(np.random.default_rng(0).uniform(0, 2, 64 * 128 * 4), jnp.bfloat16)
    params, (to_params,), y = gradients(linear.Embed(3, 4, "bfloat16"), ids, weights)
    table = params["embedding"]
    np.testing.assert_array_equal(y[5, 6], table[0].astype(jnp.bfloat16))
    expected = np.zeros(table.shape)
    expected[0] = np.asarray(weights, np.float64).reshape(-1, 4).sum(0)
    np.testing.assert_allclose(to_params["params"]["embedding"], expected, rtol=1e-5)


def test_the_products_with_the_rows_of_an_embedding_are_float32_in_any_compute_dtype():
    table, ids = linear.Embed(3, 4, "bfloat16"), jnp.arange(3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.bfloat16)
    variables = table.init(jax.random.key(0), ids)
    rows = np.asarray(variables["params"]["embedding"], np.float64)
    products = table.apply(variables, x, method="attend")
    assert products.dtype == jnp.float32
    np.testing.assert_allclose(products, np.asarray(x, np.float64) @ rows.T, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_an_added_parameter_is_a_sum_in_float32():
    x = jnp.ones((64, 128, 3, 4), jnp.bfloat16)
    value = jnp.linspace(-1, 1, 12).reshape(3, 4)
    y, pull_back = jax.vjp(linear.add_parameter, x, value)
    np.testing.assert_array_equal(y, x + value.astype(jnp.bfloat16))
    np.testing.assert_array_equal(pull_back(y * 0 + 1)[1], np.full((3, 4), 64 * 128))


def test_gradients_are_as_precise_as_the_call():
    def total(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(linear.contract(x, kernel, 1))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (3, 4))]
    program = jax.make_jaxpr(jax.grad(total, (0, 1)))(*shapes).jaxpr
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {p.params["precision"] for p in products(program)} == {highest}


@pytest.mark.parametrize("name", ["dense", "axes out", "axes in"])
def test_transposed_parameters_make_the_same_of_a_vector(name):
    rng = np.random.default_rng(0)
    layer, x = LAYERS[name][1], jnp.asarray(rng.normal(size=(5, 3, 4)), jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = {key: jnp.asarray(rng.normal(size=p.shape), p.dtype) for key, p in shapes.items()}

    @jax.jit
    def both(params, x):
        # As in a model, a layer among others that have no kernel.
        turned = linear.transposed({"layer": params, "norm": {"scale": x}})
        assert turned["norm"]["scale"] is x
        matrices = [p for p in turned["layer"].values() if p.ndim == 2 and p.shape[0] > 1]
        assert params["bias"].size in {matrix.shape[0] for matrix in matrices}
        return layer.apply({"params": params}, x), layer.apply({"params": turned["layer"]}, x)

    expected, out = both(params, x)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
