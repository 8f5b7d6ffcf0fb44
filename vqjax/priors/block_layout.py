"""The geometry of multi-grained attention: query blocks, the windows around them, and their cells.

All tables are static, for a grid of (h, w) cells cut into blocks of W_s x W_s in raster order;
blocks at the border may be partial.

A grid need not be that of the training images. The frame of a training image then lies somewhere
on it, and a block in the frame sees the blocks in the frame, as it did in training. For a block
outside of it the frame slides as far as needed, so that this block comes to lie at the frame's
border. So every block has a place that training knew, and takes the same work on any grid.

Source: paper 000, section 3.2.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

Grid = tuple[int, int]


class BlockLayout:
    """Places of the cells of a grid, block by block.

    A window lists the W_s^2 cells of its query block first, in raster order, then those cells of
    its halo that lie in the grid; it is as long as the longest, and no longer.

    Attributes:
        grid: (h, w) of the latent map.
        num_blocks: g, blocks of the grid.
        block_grid: (rows, columns) of blocks.
        window_cells: flat cell index of each cell in the window of a block; clipped into the grid.
        window_inside: whether that cell is in the grid.
        window_block: block that the cell belongs to.
        block_cells: flat cell index of each of the W_s^2 cells of a block; clipped into the grid.
        block_inside: whether that cell is in the grid.
        frame_grid: (rows, columns) of the blocks of a frame.
        block_place: (row, column) of each block.
        frame_place: (row, column) of the first block in the frame of each block.
        visits: blocks in the order of their sampling: those in the frame, then outwards, each time
            in raster order. Of a training image that is raster order alone.
        first_cell: (row, column) of the first cell of the first block; negative where that is
            partial.
    """

    def __init__(
        self,
        grid: Grid,
        block_size: int,
        halo: int,
        frame: Grid | None = None,
        corner: Grid = (0, 0),
    ):
        """Lays out a grid.

        Args:
            grid: (h, w) in cells.
            block_size: W_s.
            halo: E_s, how far a window reaches beyond W_s.
            frame: grid of the training images; None for this one.
            corner: the cell at which the frame begins.
        """
        self.grid = grid
        self.frame_grid = _blocks_along(frame or grid, (0, 0), block_size)
        before = _blocks_along(corner, (0, 0), block_size)
        self.first_cell: Int[np.ndarray, " 2"] = np.array(corner) - block_size * np.array(before)
        self.block_grid = _blocks_along(grid, self.first_cell, block_size)
        self.num_blocks = self.block_grid[0] * self.block_grid[1]
        self.block_place: Int[np.ndarray, "g 2"] = np.argwhere(np.ones(self.block_grid, bool))
        # A frame that begins with block f ends with f + length - 1.
        length = np.minimum(self.frame_grid, self.block_grid)
        frame_place = np.clip(before, self.block_place - length + 1, self.block_place)
        self.frame_place: Int[np.ndarray, "g 2"] = np.minimum(frame_place, self.block_grid - length)
        slides = np.max(np.abs(self.frame_place - np.array(before)), axis=1)
        self.visits: Int[np.ndarray, " g"] = np.argsort(slides, kind="stable")

        side = block_size + 2 * halo
        in_square = np.argwhere(np.ones((side, side), bool)) - halo
        cell = self.first_cell + block_size * self.block_place[:, None] + in_square
        last = np.array(grid) - 1
        inside = np.all((cell >= 0) & (cell <= last), axis=-1)
        own = np.all((in_square >= 0) & (in_square < block_size), axis=-1)
        # The query block's cells, then the halo's inside the grid, then what is outside of it.
        rank = np.where(own, 0, np.where(inside, 1, 2))
        longest = np.max(np.sum(rank < 2, axis=1))
        order = np.argsort(rank, axis=1, kind="stable")[:, :longest]

        self.window_inside: Bool[np.ndarray, "g n"] = np.take_along_axis(inside, order, 1)
        cell = np.take_along_axis(np.clip(cell, 0, last), order[..., None], 1)
        self.window_cells: Int[np.ndarray, "g n"] = cell @ (grid[1], 1)
        block = (cell - self.first_cell) // block_size
        self.window_block: Int[np.ndarray, "g n"] = block @ (self.block_grid[1], 1)
        self.block_cells: Int[np.ndarray, "g q"] = self.window_cells[:, : block_size**2]
        self.block_inside: Bool[np.ndarray, "g q"] = self.window_inside[:, : block_size**2]


def _blocks_along(grid: Grid, first_cell: Sequence[int] | np.ndarray, block_size: int) -> Grid:
    """Blocks along each side of a grid."""
    rows, columns = (-(-(n - int(f)) // block_size) for n, f in zip(grid, first_cell, strict=True))
    return rows, columns


@functools.lru_cache(maxsize=32)
def block_layout(
    grid: Grid, block_size: int, halo: int, frame: Grid | None = None, corner: Grid = (0, 0)
) -> BlockLayout:
    """The layout of a grid, computed once."""
    return BlockLayout(grid, block_size, halo, frame, corner)
