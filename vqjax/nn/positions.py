"""Positions of the cells of a grid, learned or fixed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.nn.transformer import INITIALIZER


class GridEmbedding(nn.Module):
    """Learned positions of cells: one table for rows and one for columns, added.

    Attributes:
        grid: (h, w) of the tables.
        dim: width.
    """

    grid: tuple[int, int]
    dim: int

    @nn.compact
    def __call__(self, grid: tuple[int, int] | None = None) -> Float[Array, "h w dim"]:
        """Positions of all cells, in float32; on another grid the tables are stretched to it."""
        tables = []
        for name, size, wanted in zip(("row", "column"), self.grid, grid or self.grid, strict=True):
            table = self.param(name, INITIALIZER, (size, self.dim))
            if wanted != size:
                table = jax.image.resize(table, (wanted, self.dim), "linear")
            tables.append(table)
        return tables[0][:, None] + tables[1][None, :]


def wave_positions(grid: tuple[int, int], dim: int) -> Float[Array, "h w dim"]:
    """Fixed positions of the cells of a grid, from sine and cosine waves.

    The first half of the width tells the row, the other the column, each by sines, then cosines, of
    wavelengths from 2 pi cells to 20,000 pi, in a geometric sequence. A cell has the same position
    in every grid.

    Args:
        grid: (h, w) in cells.
        dim: width, a multiple of 4.

    Source: Vaswani et al. 2017, section 3.5, along each axis.
    """
    frequencies = 10_000.0 ** (-jnp.arange(dim // 4) / (dim // 4))

    def axis(size: int) -> Float[Array, "n half"]:
        angles = jnp.arange(size)[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    h, w = grid
    rows = jnp.broadcast_to(axis(h)[:, None], (h, w, dim // 2))
    columns = jnp.broadcast_to(axis(w)[None], (h, w, dim // 2))
    return jnp.concatenate([rows, columns], axis=-1)
