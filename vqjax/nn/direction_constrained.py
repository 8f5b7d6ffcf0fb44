"""Direction-constrained attention: cells that are only filled in have little say, and ever more.

The attention itself is `vqjax.nn.attention.attention` with `key_weights`.

Source: paper 002, section 3.2, Eq. 6-8.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Of a masked cell in the first block: 0 would stay 0 (paper 002, below Eq. 8).
FIRST_WEIGHT = 0.02


def key_weights(kept: Bool[Array, "*b n"], block: int) -> Float[Array, "*b n"]:
    """B_h: the weight of each cell as a key after the softmax, 1 for a kept one.

    Args:
        kept: cells that have a code; the others are masked.
        block: h, from 1: the weight of a masked cell is the root of that in the block before.
    """
    # Eq. 8
    return jnp.where(kept, 1.0, FIRST_WEIGHT ** (0.5 ** (block - 1)))
