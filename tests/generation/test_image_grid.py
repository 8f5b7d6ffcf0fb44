"""The layout of picture grids."""

import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.generation.image_grid import image_grid, pair_grid

GAP = 4


def flat_images(values, size):
    values = np.asarray(values, np.float32)[:, None, None, None]
    return np.broadcast_to(values, (len(values), size, size, 3))


def cell(grid, row, column, size=128):
    top, left = row * (size + GAP), column * (size + GAP)
    return grid[top : top + size, left : left + size]


def test_grid_goes_row_by_row_with_white_gaps():
    grid = image_grid(flat_images([-1, 0, 0.5, -0.5, 1], 128), columns=3)
    assert grid.shape == (2 * 128 + GAP, 3 * 128 + 2 * GAP, 3)
    levels = [[0, 128, 191], [64, 255, 255]]
    for row in range(2):
        for column in range(3):
            assert (cell(grid, row, column) == levels[row][column]).all()
    assert (grid[128 : 128 + GAP] == 255).all()
    assert (grid[:, 128 : 128 + GAP] == 255).all()


@pytest.mark.parametrize(("size", "shown"), [(8, 128), (32, 128), (50, 100), (65, 65), (256, 256)])
def test_small_images_are_enlarged_by_a_whole_number(size, shown):
    image = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    grid = image_grid(image, columns=8)
    assert grid.shape == (shown, shown, 3)
    factor = shown // size
    levels = np.round((image[0] + 1) * 127.5)
    for y in range(factor):
        for x in range(factor):
            np.testing.assert_array_equal(grid[y::factor, x::factor], levels)


def test_bytes_are_shown_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    grid = image_grid(images, columns=2)
    for column in range(2):
        np.testing.assert_array_equal(cell(grid, 0, column), images[column])


def test_values_are_clipped_and_half_precision_is_taken():
    grid = image_grid(jnp.asarray(flat_images([-7, 7], 128), jnp.bfloat16), columns=2)
    assert (cell(grid, 0, 0) == 0).all() and (cell(grid, 0, 1) == 255).all()


def test_pairs_stand_one_over_the_other_also_in_a_short_last_row():
    inputs = flat_images([-1, -0.8, -0.6], 128)
    grid = pair_grid(inputs, -inputs, columns=2)
    assert grid.shape == (4 * 128 + 3 * GAP, 2 * 128 + GAP, 3)
    levels = [[0, 26], [255, 230], [51, 255], [204, 255]]
    for row in range(4):
        for column in range(2):
            shown = cell(grid, row, column)
            assert (np.abs(shown.astype(int) - levels[row][column]) <= 1).all()
