"""From tokens to the pixels of images, whatever their grid."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vqjax.pixels import to_bytes
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens


@functools.partial(jax.jit, static_argnames=("tokenizer", "tile", "rounded"))
def decode(
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
    tokens: Tokens,
    tile: int = 0,
    rounded: bool = True,
) -> UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]:
    """Pixels of tokens.

    Args:
        tokenizer: of the tokens.
        variables: its variables.
        tokens: dense ones may be on any grid: where windows do not divide it, it is extended for
            the decoder.
        tile: see `Tokenizer.decode`.
        rounded: to 8 bits; else [-1, 1].
    """
    h, w = tokens.grid
    f = tokenizer.downsampling
    if not all(tokenizer.fits(side * f) for side in tokens.grid):
        padding = [(0, tokenizer.fitting_side(side * f) // f - side) for side in (h, w)]
        tokens = Tokens.dense(jnp.pad(tokens.code_map, ((0, 0), *padding), mode="edge"))
    images: Float[Array, "b H W 3"] = tokenizer.apply(variables, tokens, tile, method="decode")
    images = images[:, : h * f, : w * f]
    return to_bytes(images) if rounded else jnp.clip(images, -1.0, 1.0)
