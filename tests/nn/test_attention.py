"""Attention against a float64 oracle, and what masks and bfloat16 must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from traced import products

from vqjax.nn.attention import MultiHeadAttention, attention

HEADS, QUERIES, KEYS, WIDTH = 2, 4, 5, 3


def oracle(query, key, value, bias=0.0, mask=True):
    """One query of one head at a time; leading axes are flat."""
    out = np.zeros(query.shape)
    weights_shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    bias, mask = np.broadcast_to(bias, weights_shape), np.broadcast_to(mask, weights_shape)
    for b, head, q in np.ndindex(weights_shape[:3]):
        logits = key[b, :, head] @ query[b, q, head] / np.sqrt(query.shape[-1]) + bias[b, head, q]
        seen = np.flatnonzero(mask[b, head, q])
        out[b, q, head] = scipy.special.softmax(logits[seen]) @ value[b, seen, head]
    return out


@pytest.fixture
def problem():
    """Queries, keys and values with two leading axes, a bias per head, a mask per second axis."""
    rng = np.random.default_rng(0)
    query = rng.normal(0, 2, (3, 2, QUERIES, HEADS, WIDTH))
    key, value = rng.normal(0, 2, (2, 3, 2, KEYS, HEADS, WIDTH))
    bias = rng.normal(0, 2, (HEADS, QUERIES, KEYS))
    mask = rng.random((2, 1, QUERIES, KEYS)) < 0.5
    mask[..., 0] = True
    return query, key, value, bias, mask


def expected(query, key, value, bias, mask):
    """The oracle with the problem's leading axes."""
    flat = [x.reshape(-1, *x.shape[2:]) for x in (query, key, value)]
    per_row = np.broadcast_to(mask, (3, *mask.shape)).reshape(-1, *mask.shape[1:])
    return oracle(*flat, bias, per_row).reshape(query.shape)


def to_jax(*arrays):
    return [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in arrays]


def test_attention_equals_the_oracle(problem):
    query, key, value, bias, mask = to_jax(*problem)
    out = jax.jit(attention)(query, key, value, bias=bias, mask=mask)
    np.testing.assert_allclose(out, expected(*problem), rtol=1e-4, atol=1e-5)


def test_fused_kernel_is_given_the_same_problem(problem, monkeypatch):
    # The kernel needs a GPU; XLA stands in for it, so that what it is asked for is checked anyway.
    fused = jax.nn.dot_product_attention
    asked = []

    def stand_in(*args, implementation, **kwargs):
        asked.append(implementation)
        assert kwargs["bias"].dtype == args[0].dtype
        return fused(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    query, key, value, bias, mask = to_jax(*problem)
    fused_attention = jax.jit(functools.partial(attention, implementation="cudnn"))
    out = fused_attention(query, key, value, bias=bias, mask=mask)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(out, expected(*problem), rtol=1e-4, atol=1e-5)
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    assert jax.eval_shape(fused_attention, *half, bias=bias).dtype == jnp.bfloat16


def test_softmax_is_float32_in_bfloat16():
    # The logits are 100 and 100.25, which bfloat16 cannot tell apart.
    query = jnp.array([16.0, 1.0, 0.0, 0.0], jnp.bfloat16).reshape(1, 1, 1, 4)
    key = jnp.array([[12.5, 0, 0, 0], [12.5, 0.5, 0, 0]], jnp.bfloat16).reshape(1, 2, 1, 4)
    value = jnp.array([[0.0] * 4, [1.0] * 4], jnp.bfloat16).reshape(1, 2, 1, 4)
    out = jax.jit(attention)(query, key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), scipy.special.expit(0.25), rtol=4e-3)


def test_masked_keys_have_no_gradient(problem):
    query, key, value, bias, mask = to_jax(*problem)
    mask = mask.at[:, :, :, 3].set(False)

    def total(key, value):
        return jnp.sum(jnp.sin(attention(query, key, value, bias=bias, mask=mask)))

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(key, value):
        assert not np.any(gradient[..., 3, :, :])
        assert np.all(np.any(gradient[..., 0, :, :], axis=-1))


def test_a_masked_key_is_not_seen_however_large_its_logit():
    query = jnp.ones((1, 1, 1, 4))
    key = jnp.stack([jnp.ones((1, 1, 4)), jnp.full((1, 1, 4), 1e4)], axis=1)
    value = jnp.array([2.0, 7.0]).reshape(1, 2, 1, 1) * jnp.ones(4)
    out = jax.jit(attention)(query, key, value, mask=jnp.array([True, False]))
    np.testing.assert_array_equal(out, jnp.full((1, 1, 1, 4), 2.0))


def test_projections_equal_the_oracle(problem):
    rng = np.random.default_rng(1)
    dim = 6
    x = rng.normal(size=(2, KEYS, dim))
    mask = np.tri(KEYS, dtype=bool)
    params = {
        "qkv": {
            "kernel": rng.normal(size=(dim, 3, HEADS, WIDTH)),
            "bias": rng.normal(size=(3, HEADS, WIDTH)),
        },
        "out": {"kernel": rng.normal(size=(HEADS, WIDTH, dim)), "bias": rng.normal(size=dim)},
    }
    qkv = np.einsum("bnd,dthe->tbnhe", x, params["qkv"]["kernel"])
    qkv += params["qkv"]["bias"][:, None, None]
    attended = oracle(*qkv, mask=mask)
    result = np.einsum("bnhe,hed->bnd", attended, params["out"]["kernel"]) + params["out"]["bias"]
    params = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), params)
    out = jax.jit(MultiHeadAttention(HEADS).apply)(
        {"params": params}, jnp.asarray(x, jnp.float32), mask=jnp.asarray(mask)
    )
    np.testing.assert_allclose(out, result, rtol=1e-4, atol=1e-4)


def test_parameters_are_float32_in_bfloat16():
    x = jnp.ones((1, 3, 8))
    model = MultiHeadAttention(2, dtype="bfloat16")
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"8.*3 heads"):
        MultiHeadAttention(3).init(jax.random.key(0), jnp.ones((1, 3, 8)))


@pytest.mark.parametrize("precision", [None, "highest"])
def test_a_backward_pass_multiplies_in_the_dtype_and_precision_of_the_call(precision):
    def total(query, key, value):
        with jax.default_matmul_precision(precision):
            return jnp.sum(attention(query, key, value))

    x = jax.ShapeDtypeStruct((1, 4, HEADS, WIDTH), jnp.bfloat16)
    program = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(x, x, x).jaxpr
    found = products(program)
    # Query x key, weights x value, and two gradients of each.
    assert len(found) == 6
    factors = {str(factor.aval.dtype) for product in found for factor in product.invars}
    assert factors == {"bfloat16"}
    wanted = precision and (jax.lax.Precision.HIGHEST,) * 2
    assert {product.params["precision"] for product in found} == {wanted}
