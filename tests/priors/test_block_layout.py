"""The block layout against a cell-by-cell oracle."""

import numpy as np
import pytest

from vqjax.priors.block_layout import block_layout

# Divided by the block or not, square or not, one block, single cells, a halo beyond the map.
GRIDS = [
    ((8, 8), 4, 1),
    ((4, 6), 2, 1),
    ((6, 4), 2, 3),
    ((5, 7), 3, 1),
    ((7, 3), 4, 2),
    ((3, 3), 3, 0),
    ((2, 3), 8, 2),
    ((3, 2), 1, 1),
]


def oracle(grid, block_size, halo):
    """For each block in raster order: its window as a list of (row, column, is the block's own)."""
    windows = []
    for top in range(0, grid[0], block_size):
        for left in range(0, grid[1], block_size):
            window = []
            for row in range(top - halo, top + block_size + halo):
                for column in range(left - halo, left + block_size + halo):
                    own = top <= row < top + block_size and left <= column < left + block_size
                    window.append((row, column, own))
            windows.append(window)
    return windows


@pytest.mark.parametrize(("grid", "block_size", "halo"), GRIDS)
def test_layout_equals_the_oracle_cell_by_cell(grid, block_size, halo):
    layout = block_layout(grid, block_size, halo)
    windows = oracle(grid, block_size, halo)
    rows, columns = -(-grid[0] // block_size), -(-grid[1] // block_size)
    assert layout.grid == grid and layout.block_grid == (rows, columns)
    assert layout.num_blocks == rows * columns == len(windows)
    assert layout.window_cells.shape == (len(windows), (block_size + 2 * halo) ** 2)
    for block, window in enumerate(windows):
        own = [slot for slot, cell in enumerate(window) if cell[2]]
        np.testing.assert_array_equal(layout.query_slots, own)
        for slot, (row, column, _) in enumerate(window):
            inside = 0 <= row < grid[0] and 0 <= column < grid[1]
            assert layout.window_inside[block, slot] == inside
            assert 0 <= layout.window_cells[block, slot] < grid[0] * grid[1]
            if inside:
                assert layout.window_cells[block, slot] == row * grid[1] + column
                expected = (row // block_size) * columns + column // block_size
                assert layout.window_block[block, slot] == expected
        np.testing.assert_array_equal(layout.block_cells[block], layout.window_cells[block, own])
        np.testing.assert_array_equal(layout.block_inside[block], layout.window_inside[block, own])


@pytest.mark.parametrize(("grid", "block_size", "halo"), GRIDS)
def test_every_cell_is_in_exactly_one_block(grid, block_size, halo):
    layout = block_layout(grid, block_size, halo)
    cells = np.sort(layout.block_cells[layout.block_inside])
    np.testing.assert_array_equal(cells, np.arange(grid[0] * grid[1]))
