"""Swin Transformer: attention inside windows that shift by half a window in every other block.

Source: Liu et al. 2021 (Swin Transformer), section 3; paper 000, section 3.1.

A window is a reshape, so window attention is ordinary attention with one more batch axis. Each axis
is treated by itself: where the map is no larger than the window, the window is the map and does not
shift.
"""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqjax.nn.attention import Implementation, MultiHeadAttention
from vqjax.nn.linear import Dense
from vqjax.nn.transformer import MLP


def fit_window(size: int, window: int) -> int:
    """The window used along an axis of `size` cells.

    Raises:
        ValueError: if the axis is longer than the window and not a multiple of it.
    """
    if size > window and size % window:
        raise ValueError(f"a map of {size} cells is not divided by windows of {window}")
    return min(size, window)


def partition_windows(
    x: Float[Array, "b h w c"], window: tuple[int, int]
) -> Float[Array, "b windows cells c"]:
    """Cuts a map into windows, both windows and their cells in raster order."""
    return einops.rearrange(
        x, "b (nh wh) (nw ww) c -> b (nh nw) (wh ww) c", wh=window[0], ww=window[1]
    )


def merge_windows(
    x: Float[Array, "b windows cells c"], grid: tuple[int, int], window: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The inverse of `partition_windows` for a map of shape `grid`."""
    return einops.rearrange(
        x,
        "b (nh nw) (wh ww) c -> b (nh wh) (nw ww) c",
        nh=grid[0] // window[0],
        wh=window[0],
        ww=window[1],
    )


def shifted_window_mask(
    grid: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> Bool[np.ndarray, "windows cells cells"]:
    """The mask of a rolled map's windows: True where a cell may see another one.

    The map has been rolled by `-shift`. The last window of a shifted axis joins its two ends, which
    stay apart.
    """
    axis_region = []
    for size, side, step in zip(grid, window, shift, strict=True):
        position = np.arange(size)
        axis_region.append((position >= size - side).astype(int) + (position >= size - step))
    region = axis_region[0][:, None] * 3 + axis_region[1][None, :]
    regions = einops.rearrange(
        region, "(nh wh) (nw ww) -> (nh nw) (wh ww)", wh=window[0], ww=window[1]
    )
    return regions[:, :, None] == regions[:, None, :]


def relative_position_index(
    window: tuple[int, int], table_window: int
) -> Int[np.ndarray, "cells cells"]:
    """Row of the bias table for each pair of cells in a window.

    The table holds (2 * table_window - 1)^2 offsets, so smaller windows use its middle.
    """
    cells = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), axis=-1).reshape(-1, 2)
    offset = cells[:, None] - cells[None, :] + table_window - 1
    return offset[..., 0] * (2 * table_window - 1) + offset[..., 1]


class SwinBlock(nn.Module):
    """A Swin block: pre-norm window attention and MLP.

    Attributes:
        num_heads: heads; divides the width of the map.
        window: side of the windows in cells.
        shifted: roll the windows by half their side.
        mlp_ratio: hidden width of the MLP over that of the map.
        dtype: compute dtype; parameters are float32.
        implementation: see `vqjax.nn.attention.attention`.
    """

    num_heads: int
    window: int
    shifted: bool
    mlp_ratio: int = 4
    dtype: str = "float32"
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block.

        Raises:
            ValueError: if the map is larger than the window and not divided by it.
        """
        grid = x.shape[1], x.shape[2]
        window = fit_window(grid[0], self.window), fit_window(grid[1], self.window)
        half = self.window // 2 if self.shifted else 0
        shift = tuple(half if size > self.window else 0 for size in grid)
        table = self.param(
            "relative_bias",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window - 1) ** 2, self.num_heads),
        )
        bias = einops.rearrange(
            table[relative_position_index(window, self.window)], "q k heads -> heads q k"
        )
        mask = None
        if any(shift):
            mask = jnp.asarray(shifted_window_mask(grid, window, shift))[:, None]

        y = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x)
        y = jnp.roll(y, (-shift[0], -shift[1]), (1, 2))
        y = MultiHeadAttention(
            self.num_heads, self.dtype, implementation=self.implementation, name="attention"
        )(partition_windows(y, window), bias, mask)
        x = x + jnp.roll(merge_windows(y, grid, window), shift, (1, 2))
        y = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x)
        return x + MLP(self.mlp_ratio * x.shape[-1], dtype=self.dtype, name="mlp")(y)


class SwinStage(nn.Module):
    """`depth` Swin blocks, every other one shifted. Attributes: as of `SwinBlock`."""

    depth: int
    num_heads: int
    window: int
    mlp_ratio: int = 4
    dtype: str = "float32"
    implementation: Implementation = "xla"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the blocks; raises as `SwinBlock`."""
        block = nn.remat(SwinBlock) if self.remat else SwinBlock
        for i in range(self.depth):
            x = block(
                self.num_heads,
                self.window,
                shifted=i % 2 == 1,
                mlp_ratio=self.mlp_ratio,
                dtype=self.dtype,
                implementation=self.implementation,
                name=f"block_{i}",
            )(x)
        return x


class PatchMerging(nn.Module):
    """A layer that halves a map: four neighbours concatenated, LayerNorm, linear without bias.

    Attributes:
        features: width of the output (Swin: twice the input's).
        dtype: compute dtype.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 features"]:
        """Merges each 2x2 patch of cells; the sides must be even."""
        x = einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return Dense(self.features, use_bias=False, dtype=self.dtype, name="linear")(x)


class PatchExpanding(nn.Module):
    """A layer that doubles a map: linear without bias, pixel shuffle, LayerNorm.

    Source: Swin-Unet (Cao et al. 2021), section 3.5, named by paper 000, section 3.1.

    Attributes:
        features: width of the output (Swin-Unet: half the input's).
        dtype: compute dtype.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w features"]:
        """Expands each cell to a 2x2 patch."""
        x = Dense(4 * self.features, use_bias=False, dtype=self.dtype, name="linear")(x)
        x = einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)
