"""Learned positions: of the cells of a grid, and of the places of a sequence."""

import flax.linen as nn
import jax
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
            tables.append(table if wanted == size else stretched(table, wanted))
        return tables[0][:, None] + tables[1][None, :]


class CellEmbedding(nn.Module):
    """Learned positions of cells, one for each.

    Attributes:
        grid: (h, w) of the cells.
        dim: width.
    """

    grid: tuple[int, int]
    dim: int

    @nn.compact
    def __call__(self) -> Float[Array, "n dim"]:
        """Positions of all cells in raster order, in float32."""
        return self.param("cell", INITIALIZER, (*self.grid, self.dim)).reshape(-1, self.dim)


class SequenceEmbedding(nn.Module):
    """Learned positions of the places of a sequence, of the length that it was first called with.

    Attributes:
        dim: width.
    """

    dim: int

    @nn.compact
    def __call__(self, length: int | None = None) -> Float[Array, "n dim"]:
        """Positions of all places, in float32.

        Args:
            length: n; where it is not given, there are parameters that know it.
        """
        if length is None:
            return self.get_variable("params", "place")
        return self.param("place", INITIALIZER, (length, self.dim))


def stretched(table: Float[Array, "*n dim"], *sizes: int) -> Float[Array, "*m dim"]:
    """A table of positions for sides of other numbers of cells, interpolated."""
    return jax.image.resize(table, (*sizes, table.shape[-1]), "linear")
