"""Tokens: dense and sparse ones, on the host's numpy as the oracle."""

import jax
import numpy as np
import pytest

from vqjax.tokens import Tokens

scattered = jax.jit(Tokens.scattered, static_argnums=1)


def test_dense_tokens_are_in_raster_order():
    code_map = np.arange(24).reshape(2, 3, 4) + 5
    tokens = jax.jit(Tokens.dense)(code_map)
    assert tokens.grid == (3, 4)
    np.testing.assert_array_equal(tokens.codes, code_map.reshape(2, 12))
    np.testing.assert_array_equal(tokens.positions, [np.arange(12)] * 2)
    np.testing.assert_array_equal(tokens.code_map, code_map)
    np.testing.assert_array_equal(scattered(tokens, 99), code_map.reshape(2, 12))


def test_tokens_are_a_pytree_with_a_static_grid():
    codes, positions = np.arange(10).reshape(2, 5), np.arange(2, 12).reshape(2, 5)
    tokens = Tokens(*jax.device_put((codes, positions)), (3, 4))
    flat, tree = jax.tree.flatten_with_path(tokens)
    assert [jax.tree_util.keystr(path) for path, _ in flat] == [".codes", ".positions"]
    again = jax.tree.unflatten(tree, [leaf for _, leaf in flat])
    assert isinstance(again, Tokens) and again.grid == (3, 4)
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(again.positions, positions)

    shapes = jax.eval_shape(lambda t: jax.tree.map(lambda x: x + 1, t), tokens)
    assert shapes.grid == (3, 4) and shapes.codes.shape == (2, 5)
    # Of another grid it is another tree: a program for one grid is not run on another.
    assert tree != jax.tree.structure(Tokens(tokens.codes, tokens.positions, (4, 3)))


def test_sparse_tokens_have_no_code_map():
    tokens = Tokens(*jax.device_put((np.zeros((1, 5), int), np.arange(5)[None])), (3, 4))
    with pytest.raises(ValueError, match="5 codes on a 3x4 grid"):
        _ = tokens.code_map


def test_tokens_are_scattered_to_their_cells_and_those_of_no_cell_are_dropped():
    rng = np.random.default_rng(0)
    grid, codes = (3, 4), rng.integers(0, 9, (5, 6)).astype(np.int32)
    positions = np.stack([rng.permutation(12)[:6] for _ in range(5)]).astype(np.int32)
    positions[0, :2] = positions[1, 3] = positions[4] = 12  # no token
    expected = np.full((5, 12), 9)
    for image, n in np.ndindex(codes.shape):
        if positions[image, n] < 12:
            expected[image, positions[image, n]] = codes[image, n]
    tokens = Tokens(*jax.device_put((codes, positions)), grid)
    np.testing.assert_array_equal(scattered(tokens, 9), expected)
    np.testing.assert_array_equal(tokens.present, positions < 12)
    assert (expected[4] == 9).all() and (expected != 9).sum() > 15


def test_no_tokens_leave_every_cell_missing():
    tokens = Tokens.none(2, (3, 4))
    assert tokens.codes.shape == tokens.positions.shape == (2, 12) and tokens.grid == (3, 4)
    np.testing.assert_array_equal(scattered(tokens, 7), np.full((2, 12), 7))
    assert not tokens.present.any() and Tokens.dense(tokens.code_map).present.all()


def test_raster_order_sorts_each_image_and_puts_tokens_of_no_cell_last():
    codes = np.array([[7, 8, 9, 6], [5, 4, 3, 2]], np.int32)
    positions = np.array([[11, 0, 12, 4], [1, 2, 3, 9]], np.int32)
    tokens = Tokens(*jax.device_put((codes, positions)), (3, 4))
    ordered = jax.jit(Tokens.in_raster_order)(tokens)
    assert ordered.grid == (3, 4)
    np.testing.assert_array_equal(ordered.codes, [[8, 6, 7, 9], [5, 4, 3, 2]])
    np.testing.assert_array_equal(ordered.positions, [[0, 4, 11, 12], [1, 2, 3, 9]])
