"""From images to tokens, and from tokens of whatever grid to images."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vqjax.pixels import to_bytes, to_float
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def encode(
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
    images: UInt8[Array | np.ndarray, "b H W 3"],
) -> Tokens:
    """Tokens of 8-bit images of a size that the tokenizer takes.

    Raises:
        InputError: it does not take it.
    """
    return tokenizer.apply(variables, to_float(images), method="encode")


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

    Raises:
        InputError: sparse tokens on a grid that does not fit the tokenizer.
    """
    h, w = tokens.grid
    f = tokenizer.downsampling
    if not all(tokenizer.fits(side * f) for side in tokens.grid):
        tokenizer.check_dense(f"an image of {w * f}x{h * f} pixels")
        padding = [(0, tokenizer.fitting_side(side * f) // f - side) for side in (h, w)]
        tokens = Tokens.dense(jnp.pad(tokens.code_map, ((0, 0), *padding), mode="edge"))
    images: Float[Array, "b H W 3"] = tokenizer.apply(variables, tokens, tile, method="decode")
    images = images[:, : h * f, : w * f]
    return to_bytes(images) if rounded else jnp.clip(images, -1.0, 1.0)
