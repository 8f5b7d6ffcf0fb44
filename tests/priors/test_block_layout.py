"""The block layout against a cell-by-cell oracle."""

import itertools

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
    """Of each block in raster order: the cells (row, column) of its window."""
    windows = []
    for top, left in itertools.product(*(range(0, n, block_size) for n in grid)):
        square = [
            (row, column)
            for row in range(top - halo, top + block_size + halo)
            for column in range(left - halo, left + block_size + halo)
        ]
        own = [(top + i, left + j) for i in range(block_size) for j in range(block_size)]
        around = [cell for cell in square if cell not in own and is_inside(cell, grid)]
        windows.append(own + around)
    return windows


def is_inside(cell, grid):
    return 0 <= cell[0] < grid[0] and 0 <= cell[1] < grid[1]


@pytest.mark.parametrize(("grid", "block_size", "halo"), GRIDS)
def test_layout_equals_the_oracle_cell_by_cell(grid, block_size, halo):
    layout = block_layout(grid, block_size, halo)
    windows = oracle(grid, block_size, halo)
    rows, columns = -(-grid[0] // block_size), -(-grid[1] // block_size)
    assert layout.grid == grid and layout.block_grid == (rows, columns)
    assert layout.num_blocks == rows * columns == len(windows)
    # No longer than the longest window needs.
    assert layout.window_cells.shape == (len(windows), max(map(len, windows)))
    for block, window in enumerate(windows):
        assert not layout.window_inside[block, len(window) :].any()
        for slot, cell in enumerate(window):
            assert layout.window_inside[block, slot] == is_inside(cell, grid)
            assert 0 <= layout.window_cells[block, slot] < grid[0] * grid[1]
            if is_inside(cell, grid):
                assert layout.window_cells[block, slot] == cell[0] * grid[1] + cell[1]
                expected = (cell[0] // block_size) * columns + cell[1] // block_size
                assert layout.window_block[block, slot] == expected
    own = block_size**2
    np.testing.assert_array_equal(layout.block_cells, layout.window_cells[:, :own])
    np.testing.assert_array_equal(layout.block_inside, layout.window_inside[:, :own])


@pytest.mark.parametrize(
    ("grid", "halo", "length"), [((16, 16), 2, 100), ((16, 16), 4, 144), ((32, 32), 2, 144)]
)
def test_windows_at_the_border_are_packed(grid, halo, length):
    assert block_layout(grid, 8, halo).window_cells.shape[1] == length


@pytest.mark.parametrize(("grid", "block_size", "halo"), GRIDS)
def test_every_cell_is_in_exactly_one_block(grid, block_size, halo):
    layout = block_layout(grid, block_size, halo)
    cells = np.sort(layout.block_cells[layout.block_inside])
    np.testing.assert_array_equal(cells, np.arange(grid[0] * grid[1]))


# Other grids than that of the training images


def test_the_frame_of_a_training_image_is_the_image():
    layout = block_layout((5, 7), 3, 1, (5, 7))
    assert layout.frame_grid == layout.block_grid == (2, 3)
    np.testing.assert_array_equal(layout.frame_place, np.zeros((6, 2)))
    np.testing.assert_array_equal(layout.block_place, list(np.ndindex(2, 3)))
    np.testing.assert_array_equal(layout.visits, np.arange(6))


def test_blocks_of_the_frame_are_visited_first_then_outwards():
    layout = block_layout((8, 20), 4, 1, (8, 8), (0, 8))
    # Columns 2 and 3 of two rows are the frame's.
    rings = [[2, 3, 7, 8], [1, 4, 6, 9], [0, 5]]
    assert layout.visits.tolist() == [block for ring in rings for block in ring]


@pytest.mark.parametrize(
    ("corner", "first"), [(0, [0, 0, 0, 1, 2]), (4, [0, 1, 1, 1, 2]), (8, [0, 1, 2, 2, 2])]
)
def test_the_frame_slides_no_further_than_a_block_outside_of_it_needs(corner, first):
    # Two rows as in training; five columns, of which a frame has three.
    layout = block_layout((8, 20), 4, 1, (8, 12), (0, corner))
    assert layout.frame_grid == (2, 3)
    np.testing.assert_array_equal(layout.frame_place, [(0, column) for column in 2 * first])


@pytest.mark.parametrize("corner", [(1, 2), (3, 0), (4, 5)])
def test_blocks_begin_with_the_frame_wherever_it_lies(corner):
    """In the frame every window is that of a training image, but for what its halo sees around."""
    grid, frame, size, halo = (14, 15), (8, 8), 4, 1
    layout, home = block_layout(grid, size, halo, frame, corner), block_layout(frame, size, halo)
    cells = np.sort(layout.block_cells[layout.block_inside])
    np.testing.assert_array_equal(cells, np.arange(14 * 15))
    for block in range(home.num_blocks):

        def moved(cells):
            row, column = np.divmod(cells, 8)
            return ((row + corner[0]) * 15 + column + corner[1]).tolist()

        there = moved(home.block_cells[block])
        (match,) = np.flatnonzero((layout.block_cells == there).all(1))
        place = layout.block_place[match] - layout.frame_place[match]
        np.testing.assert_array_equal(place, home.block_place[block])
        first = layout.first_cell + size * layout.frame_place[match]
        np.testing.assert_array_equal(first, corner)
        inside = home.window_cells[block][home.window_inside[block]]
        assert set(moved(inside)) <= set(layout.window_cells[match].tolist())


def test_on_a_smaller_grid_the_blocks_are_the_upper_left_ones_of_the_frame():
    layout = block_layout((4, 8), 4, 1, (12, 12))
    assert layout.frame_grid == (3, 3) and layout.num_blocks == 2
    np.testing.assert_array_equal(layout.frame_place, np.zeros((2, 2)))
