"""Tokens: dense and sparse ones, on the host's numpy as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.tokens import Tokens


def test_dense_tokens_are_in_raster_order():
    code_map = jnp.arange(12).reshape(1, 3, 4) + 5
    tokens = Tokens.dense(jnp.tile(code_map, (2, 1, 1)))
    assert tokens.grid == (3, 4)
    np.testing.assert_array_equal(tokens.codes[1], np.arange(12) + 5)
    np.testing.assert_array_equal(tokens.positions[1], np.arange(12))
    np.testing.assert_array_equal(tokens.code_map[0], code_map[0])


def test_tokens_are_a_pytree_with_a_static_grid():
    tokens = Tokens.dense(jnp.zeros((2, 3, 4), jnp.int32))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tokens)]
    assert paths == [".codes", ".positions"]
    shapes = jax.eval_shape(lambda t: jax.tree.map(lambda x: x + 1, t), tokens)
    assert shapes.grid == (3, 4) and shapes.codes.shape == (2, 12)


def test_sparse_tokens_have_no_code_map():
    tokens = Tokens(jnp.zeros((1, 5), jnp.int32), jnp.arange(5)[None], (3, 4))
    with pytest.raises(ValueError, match="5 codes on a 3x4 grid"):
        _ = tokens.code_map


def test_tokens_are_scattered_to_their_cells_and_none_is_dropped():
    rng = np.random.default_rng(0)
    grid, codes = (3, 4), rng.integers(0, 9, (5, 6)).astype(np.int32)
    positions = np.stack([rng.permutation(13)[:6] for _ in range(5)]).astype(np.int32)
    positions[0, :2] = 12  # no token
    expected = np.full((5, 12), 9)
    for image, n in np.ndindex(codes.shape):
        if positions[image, n] < 12:
            expected[image, positions[image, n]] = codes[image, n]
    tokens = Tokens(jnp.asarray(codes), jnp.asarray(positions), grid)
    np.testing.assert_array_equal(tokens.scattered(9), expected)
    dense = Tokens.dense(jnp.asarray(codes.reshape(5, 2, 3)))
    np.testing.assert_array_equal(dense.scattered(9), codes)


def test_no_tokens_leave_every_cell_missing():
    tokens = Tokens.none(2, (3, 4))
    assert tokens.codes.shape == tokens.positions.shape == (2, 12) and tokens.grid == (3, 4)
    np.testing.assert_array_equal(tokens.scattered(7), np.full((2, 12), 7))
