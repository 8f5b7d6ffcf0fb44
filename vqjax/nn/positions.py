"""Learned positions of the cells of a grid."""

import flax.linen as nn
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
