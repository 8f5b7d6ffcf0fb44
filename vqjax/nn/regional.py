"""Blocked attention over large maps: within square regions, and from each region to all others.

Source: Zhao et al. 2021, "Improved Transformer for High-Resolution GANs" (HiT), section 3.2; paper
001, table 7 ("B&D Attn").

Both are a reshape: cut into regions, a map is a matrix of cells, a row for each region and a column
for each place in a region. Attention within the rows is regional, within the columns dilated.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.nn.attention import Implementation, MultiHeadAttention
from vqjax.nn.windows import merge_windows, partition_windows


def partition_groups(
    x: Float[Array, "b h w c"], region: int, dilated: bool
) -> Float[Array, "b groups cells c"]:
    """Cuts a map into the groups of cells that attend to each other.

    Args:
        x: the map.
        region: side of the square regions in cells.
        dilated: a group is the cells of one place in all regions; else it is a region.

    Raises:
        ValueError: if the region does not divide a side of the map.
    """
    h, w = x.shape[1:3]
    if h % region or w % region:
        raise ValueError(f"a map of {h}x{w} cells is not divided by regions of {region}x{region}")
    regions = partition_windows(x, (region, region))
    return jnp.swapaxes(regions, 1, 2) if dilated else regions


def merge_groups(
    x: Float[Array, "b groups cells c"], grid: tuple[int, int], region: int, dilated: bool
) -> Float[Array, "b h w c"]:
    """The inverse of `partition_groups` for a map of shape `grid`."""
    regions = jnp.swapaxes(x, 1, 2) if dilated else x
    return merge_windows(regions, grid, (region, region))


class RegionalAttention(nn.Module):
    """Self-attention of a map's cells within groups, after LayerNorm, added to the input.

    A regional and a dilated one in a row let every cell know of all others, at a cost that grows
    with n^1.5 for a map of n cells in regions of sqrt(n). The layer starts as the identity: its
    projection of the output is zero at first.

    Attributes:
        region: side of the square regions in cells.
        dilated: attend to the cells of the same place in all regions; else to those of the region.
        num_heads: heads; divides the width of the map.
        dtype: compute dtype; parameters are float32.
        implementation: see `vqjax.nn.attention.attention`.
    """

    region: int
    dilated: bool
    num_heads: int
    dtype: str = "float32"
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the layer; raises as `partition_groups`."""
        y = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        y = partition_groups(y, self.region, self.dilated)
        y = MultiHeadAttention(
            self.num_heads,
            self.dtype,
            implementation=self.implementation,
            out_init=nn.initializers.zeros,
            name="attention",
        )(y)
        return x + merge_groups(y, (x.shape[1], x.shape[2]), self.region, self.dilated)
