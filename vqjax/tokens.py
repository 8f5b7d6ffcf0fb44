"""Tokens: the only thing that crosses between a tokenizer and a prior."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of images as codes at positions of a latent grid; a pytree.

    A dense tokenizer has one code for every cell (n = h * w, positions = arange); a sparse one
    keeps n < h * w. Where not every image of a batch has the same number of tokens, as where some
    are known and others are to be sampled, the position h * w says that there is none: all images
    keep one shape, and no program is compiled anew.

    Attributes:
        codes: indices into the codebook, [0, num_codes).
        positions: flat raster index (row * w + column) of each code in the latent grid, [0, h * w);
            h * w for no token.
        grid: the latent grid (h, w), static.
    """

    codes: Int[Array, "b n"]
    positions: Int[Array, "b n"]
    grid: tuple[int, int]

    @classmethod
    def dense(cls, code_map: Int[Array, "b h w"]) -> "Tokens":
        """The tokens of a full code map, in raster order."""
        b, h, w = code_map.shape
        positions = jnp.broadcast_to(jnp.arange(h * w, dtype=jnp.int32), (b, h * w))
        return cls(code_map.reshape(b, h * w), positions, (h, w))

    @classmethod
    def none(cls, batch: int, grid: tuple[int, int]) -> "Tokens":
        """No tokens of any cell, in the shape of dense ones."""
        cells = grid[0] * grid[1]
        codes = jnp.zeros((batch, cells), jnp.int32)
        return cls(codes, jnp.full_like(codes, cells), grid)

    @property
    def present(self) -> Bool[Array, "b n"]:
        """The codes that lie at a cell: all of dense tokens; those that count."""
        return self.positions < self.grid[0] * self.grid[1]

    @property
    def code_map(self) -> Int[Array, "b h w"]:
        """The codes of dense tokens as a map.

        Raises:
            ValueError: if the tokens are sparse, i.e. do not fill their grid.
        """
        (b, n), (h, w) = self.codes.shape, self.grid
        if n != h * w:
            raise ValueError(f"sparse tokens ({n} codes on a {h}x{w} grid) have no code map")
        return self.codes.reshape(b, h, w)

    def scattered(self, missing: int) -> Int[Array, "b cells"]:
        """The code of every cell in raster order; `missing` where there is no token."""
        (b, _), (h, w) = self.codes.shape, self.grid
        empty = jnp.full((b, h * w), missing, jnp.int32)
        rows = jnp.arange(b)[:, None]
        return empty.at[rows, self.positions].set(self.codes, mode="drop")

    def in_raster_order(self) -> "Tokens":
        """The same tokens by ascending position; those of no cell come last."""
        order = jnp.argsort(self.positions, axis=-1)
        codes, positions = (
            jnp.take_along_axis(x, order, axis=-1) for x in (self.codes, self.positions)
        )
        return Tokens(codes, positions, self.grid)

    def tree_flatten_with_keys(self) -> tuple[Any, tuple[int, int]]:
        """Children with their keys, and the static grid."""
        key = jax.tree_util.GetAttrKey
        return ((key("codes"), self.codes), (key("positions"), self.positions)), self.grid

    @classmethod
    def tree_unflatten(cls, grid: tuple[int, int], children: Any) -> "Tokens":
        """Rebuilds the tree around any leaves: JAX puts shapes and placeholders there."""
        tokens = object.__new__(cls)
        for name, value in zip(("codes", "positions", "grid"), (*children, grid), strict=True):
            object.__setattr__(tokens, name, value)
        return tokens
