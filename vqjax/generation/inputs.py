"""Checks of the arguments of the Python API; an error is one line."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vqjax.errors import InputError
from vqjax.priors import PRIORS, Prior
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens


def checked_images(images: Any) -> UInt8[np.ndarray, "n H W 3"]:
    """Images as bytes.

    Raises:
        InputError: they are something else.
    """
    return _bytes(images, "images", "[n, H, W, 3]", 4)


def checked_image(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """An image as bytes.

    Raises:
        InputError: it is something else.
    """
    return _bytes(image, "image", "[H, W, 3]", 3)


def checked_mask(mask: Any) -> UInt8[np.ndarray, "H W 3"]:
    """A mask as the picture that it would be in a file: white where it is True.

    Raises:
        InputError: it is neither a picture nor a map of truth values or bytes.
    """
    array = np.asarray(mask)
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    return _bytes(array, "mask", "[H, W] or [H, W, 3], or bool", 3)


def checked_count(count: Any) -> int:
    """A number of images.

    Raises:
        InputError: it is none.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise InputError(f"count={count!r}: a whole number from 1 is needed")
    return int(count)


def check_edits(prior: Prior) -> None:
    """Checks that a prior can fill a hole.

    Raises:
        InputError: it takes no known tokens; the message names priors that do.
    """
    if not prior.known_tokens:
        able = ", ".join(sorted(name for name, cls in PRIORS.items() if cls.known_tokens))
        raise InputError(
            f"the prior {type(prior).__name__} draws whole images only, so it cannot edit one;"
            f" priors that can: {able}"
        )


def checked_tokens(tokens: Any, tokenizer: Tokenizer) -> Tokens:
    """Tokens that a tokenizer can decode.

    Raises:
        InputError: they are none, have codes that it does not have, or dense ones are not in raster
            order; of sparse ones, two lie at one cell, or one outside of the grid.
    """
    if not isinstance(tokens, Tokens):
        raise InputError(f"tokens: those of `encode` are needed, not {type(tokens).__name__}")
    shapes = [np.shape(x) for x in (tokens.codes, tokens.positions)]
    whole = all(np.issubdtype(x.dtype, np.integer) for x in (tokens.codes, tokens.positions))
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or not shapes[0][1] or not whole:
        raise InputError(
            "tokens: whole numbers [images, tokens] are needed, as many positions as codes, not"
            f" {tokens.codes.dtype} {list(shapes[0])} and {tokens.positions.dtype}"
            f" {list(shapes[1])}"
        )
    codes, positions = np.asarray(tokens.codes), np.asarray(tokens.positions)
    if codes.size and not 0 <= codes.min() <= codes.max() < tokenizer.num_codes:
        raise InputError(
            f"tokens: codes from 0 to {tokenizer.num_codes - 1} are needed, not"
            f" {codes.min()} to {codes.max()}"
        )
    cells = tokens.grid[0] * tokens.grid[1]
    if tokenizer.token_kind == "dense":
        if codes.shape[1] != cells or (positions != np.arange(cells)).any():
            raise InputError(
                "tokens: this tokenizer decodes one code for each cell, in raster order; make them"
                " with Tokens.dense"
            )
    elif positions.size:
        _check_positions(positions, cells)
    return tokens


def _check_positions(positions: Int[np.ndarray, "b n"], cells: int) -> None:
    """Checks that tokens lie at cells of their own, or at none, which position `cells` says."""
    if not 0 <= positions.min() <= positions.max() <= cells:
        raise InputError(
            f"tokens: positions from 0 to {cells - 1} are needed, or {cells} for no token, not"
            f" {positions.min()} to {positions.max()}"
        )
    ordered = np.sort(positions, axis=1)
    images, places = np.nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < cells))
    if images.size:
        raise InputError(
            f"tokens: image {images[0]} has more than one code at position"
            f" {ordered[images[0], places[0]]}: each cell has one or none"
        )


def _bytes(value: Any, name: str, shape: str, axes: int) -> UInt8[np.ndarray, "..."]:
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != axes or array.shape[-1] != 3:
        raise InputError(f"{name}: uint8 {shape} is needed, not {array.dtype} {list(array.shape)}")
    return array
