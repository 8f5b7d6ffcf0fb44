"""Positions of the cells of a grid, learned or fixed."""

import flax.linen as nn
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
    def __call__(self) -> Float[Array, "h w dim"]:
        """Positions of all cells, in float32."""
        rows, columns = (
            self.param(name, INITIALIZER, (size, self.dim))
            for name, size in zip(("row", "column"), self.grid, strict=True)
        )
        return rows[:, None] + columns[None, :]


def wave_positions(grid: tuple[int, int], dim: int) -> Float[Array, "cells dim"]:
    """Fixed positions of the cells of a grid in raster order, from sine and cosine waves.

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
    return jnp.concatenate([rows, columns], axis=-1).reshape(h * w, dim)
