"""Geometry of working a map off in tiles: how much surrounds each tile, and where it lies."""

import dataclasses

import numpy as np
from jaxtyping import Int


def swin_halo(depth: int, window: int, reach: int) -> int:
    """Cells that a tile needs around it to leave a `SwinStage` as it would in the whole map.

    A tile is a range of whole windows. What is wanted of the stage is the tile and `reach` cells on
    each side. From the last block to the first, a block asks of the one before it for every window
    that it has in that range, so the range grows to the borders of windows: with shifted and plain
    ones in turn, by half a window a block. The result is rounded up to whole windows.

    Args:
        depth: blocks of the stage; every other one, from the second, is shifted.
        window: side of the windows in cells.
        reach: cells beyond the tile that what follows the stage looks at.
    """
    before, after = reach, reach
    for i in reversed(range(depth)):
        shift = window // 2 if i % 2 else 0
        # Windows begin at multiples of their side plus the shift, and the tile at a multiple.
        before += (-shift - before) % window
        after += (shift - after) % window
    return -(-max(before, after) // window) * window


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A map covered by tiles of one size, each inside a crop of one size, with a halo around it.

    Where a crop would leave the map it is moved inwards, so that the map's border, which blocks
    treat in their own way, is the crop's border too. The last tile of an axis may overlap the one
    before.

    Attributes:
        size: (height, width) of the map in cells.
        tile: side of a tile; on an axis that is shorter, a tile takes in all of it.
        halo: cells around a tile.
    """

    size: tuple[int, int]
    tile: int
    halo: int

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        height, width = (min(self.tile, side) for side in self.size)
        return height, width

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of a crop."""
        height, width = (min(self.tile + 2 * self.halo, side) for side in self.size)
        return height, width

    @property
    def tile_origins(self) -> Int[np.ndarray, "n 2"]:
        """(row, column) of the first cell of each tile."""
        axes = (np.arange(0, side, self.tile) for side in self.size)
        origins = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        return np.minimum(origins, np.subtract(self.size, self.tile_size))

    @property
    def crop_origins(self) -> Int[np.ndarray, "n 2"]:
        """(row, column) of the first cell of each crop."""
        last = np.subtract(self.size, self.crop_size)
        return np.clip(self.tile_origins - self.halo, 0, last)
