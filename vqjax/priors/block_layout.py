"""The geometry of multi-grained attention: query blocks, the windows around them, and their cells.

All tables are static, for a grid of (h, w) cells cut into blocks of W_s x W_s in raster order;
blocks at the lower and right border may be partial.

Source: paper 000, section 3.2.
"""

import functools

import numpy as np
from jaxtyping import Bool, Int


class BlockLayout:
    """Places of the cells of a grid, block by block.

    Attributes:
        grid: (h, w) of the latent map.
        num_blocks: g, blocks of the grid.
        block_grid: (rows, columns) of blocks.
        window_cells: flat cell index of each cell in the (W_s + 2 E_s)^2 window around a block;
            clipped into the grid.
        window_inside: whether that cell is in the grid.
        window_block: block that the cell belongs to.
        query_slots: which cells of a window are its block's own, in raster order.
        block_cells: flat cell index of each of the W_s^2 cells of a block; clipped into the grid.
        block_inside: whether that cell is in the grid.
    """

    def __init__(self, grid: tuple[int, int], block_size: int, halo: int):
        """Lays out a grid of (h, w) cells; `halo` is E_s, how far a window reaches beyond W_s."""
        self.grid = grid
        self.block_grid = -(-grid[0] // block_size), -(-grid[1] // block_size)
        self.num_blocks = self.block_grid[0] * self.block_grid[1]
        side = block_size + 2 * halo
        within = np.arange(halo, halo + block_size)
        self.query_slots: Int[np.ndarray, " q"] = (within[:, None] * side + within).reshape(-1)

        corner = np.stack(
            np.meshgrid(*(np.arange(n) * block_size for n in self.block_grid), indexing="ij"), -1
        )
        offset = np.stack(np.meshgrid(*(np.arange(side) - halo,) * 2, indexing="ij"), -1)
        cell = corner.reshape(-1, 1, 2) + offset.reshape(1, -1, 2)
        last = np.array(grid) - 1
        self.window_inside: Bool[np.ndarray, "g n"] = np.all((cell >= 0) & (cell <= last), axis=-1)
        cell = np.clip(cell, 0, last)
        self.window_cells: Int[np.ndarray, "g n"] = cell[..., 0] * grid[1] + cell[..., 1]
        block = cell // block_size
        self.window_block: Int[np.ndarray, "g n"] = (
            block[..., 0] * self.block_grid[1] + block[..., 1]
        )
        self.block_cells: Int[np.ndarray, "g q"] = self.window_cells[:, self.query_slots]
        self.block_inside: Bool[np.ndarray, "g q"] = self.window_inside[:, self.query_slots]


@functools.lru_cache(maxsize=32)
def block_layout(grid: tuple[int, int], block_size: int, halo: int) -> BlockLayout:
    """The layout of a grid, computed once."""
    return BlockLayout(grid, block_size, halo)
