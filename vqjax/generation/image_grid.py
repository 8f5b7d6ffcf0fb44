"""Batches of images as one picture."""

import jax
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, UInt8

from vqjax.pixels import to_bytes

# Between the images, in pixels.
GAP = 4
# Smaller images are enlarged to the largest multiple of their size that fits.
_CELL_SIZE = 128
_WHITE = 255

Images = jax.Array | np.ndarray


def image_grid(
    images: Float[Images, "n h w 3"] | UInt8[Images, "n h w 3"], columns: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Images, of 8 bits or in [-1, 1], in rows of `columns`, on white, 4 pixels apart.

    Images under 128 pixels are enlarged by a whole number, each pixel to a square. Values outside
    the range are clipped; cells that no image fills stay white.
    """
    cells = np.asarray(images if images.dtype == np.uint8 else to_bytes(images))
    n, height, width, _ = cells.shape
    factor = enlargement(height, width)
    cells = repeat(cells, "n h w c -> n (h y) (w x) c", y=factor, x=factor)
    columns = min(columns, n)
    empty = -n % columns
    cells = np.pad(cells, ((0, empty), (0, GAP), (0, GAP), (0, 0)), constant_values=_WHITE)
    grid = rearrange(cells, "(row column) h w c -> (row h) (column w) c", column=columns)
    return grid[:-GAP, :-GAP]


def enlargement(height: int, width: int) -> int:
    """How many times as large an image is in a grid, along either side."""
    return max(1, _CELL_SIZE // max(height, width))


def pair_grid(
    inputs: Float[Images, "n h w 3"], reconstructions: Float[Images, "n h w 3"], columns: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of `columns` inputs, each row over the row of their reconstructions.

    Ranges, sizes and gaps are those of `image_grid`.
    """
    columns = min(columns, len(inputs))
    pairs = np.stack([np.asarray(inputs, np.float32), np.asarray(reconstructions, np.float32)])
    empty = -len(inputs) % columns
    # White is 1: the last row of inputs is filled up, so that its reconstructions come under it.
    pairs = np.pad(pairs, ((0, 0), (0, empty), (0, 0), (0, 0), (0, 0)), constant_values=1.0)
    rows = rearrange(pairs, "pair (row column) h w c -> (row pair column) h w c", column=columns)
    return image_grid(rows, columns)
