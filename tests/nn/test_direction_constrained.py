"""Direction-constrained attention against paper 002, Eq. 6-8."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.nn.attention import attention
from vqjax.nn.direction_constrained import key_weights

KEPT = np.array([[True, False, True, False, False], [False, True, True, True, False]])


def qkv(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, (3, 2, 5, 1, 4)), jnp.float32)


def plain_weights(block):
    """Eq. 8 as it stands, from the first block on."""
    weights = np.where(KEPT, 1.0, 0.02)
    for _ in range(1, block):
        weights = np.sqrt(weights)
    return weights


def attention_matrix(query, key):
    """A of Eq. 6 before the product with B, in float64."""
    logits = np.einsum("bqhd,bkhd->bqk", *map(np.float64, (query, key))) / np.sqrt(4)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("block", [1, 2, 8])
def test_equations_in_float64(block):
    """The product comes after the softmax, and nothing is normalised again."""
    query, key, value = qkv()
    out = attention(query, key, value, key_weights=key_weights(jnp.asarray(KEPT), block))
    weighted = attention_matrix(query, key) * plain_weights(block)[:, None]
    wanted = np.einsum("bqk,bkhd->bqhd", weighted, value)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_a_masked_value_moves_the_first_block_by_a_fiftieth():
    query, key, value = qkv()
    delta = np.float32([3.0, -2.0, 5.0, 1.0])
    changed = value.at[:, 4].add(delta)
    weights = key_weights(jnp.asarray(KEPT), 1)
    moved = attention(query, key, changed, key_weights=weights) - attention(
        query, key, value, key_weights=weights
    )
    wanted = 0.02 * attention_matrix(query, key)[:, :, 4, None, None] * delta
    np.testing.assert_allclose(moved, wanted, rtol=1e-3, atol=1e-6)


def test_weights_of_ones_are_plain_attention():
    query, key, value = qkv()
    out = attention(query, key, value, key_weights=jnp.ones((2, 5)))
    np.testing.assert_array_equal(out, attention(query, key, value))
