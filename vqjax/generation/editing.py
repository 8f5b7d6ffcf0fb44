"""Editing: pixel mask -> token mask -> sampled tokens -> composited image.

Inpainting, outpainting and the replacement of a box differ only in the canvas and in which of its
pixels are made anew; any size that f divides will do. Four results of one edit, batch by batch:

    run = vqjax.load("runs/faces")
    edit = outpaint(run.tokenizer, image, left=128)
    batches = run.images(run.edit_conditions(4), run.sampling(), edit=edit)

Source: paper 000, section 4.3.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8
from scipy import ndimage

from vqjax.errors import InputError
from vqjax.pixels import to_float
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """A canvas with a hole.

    Attributes:
        canvas: pixels of the whole result. Those under the hole have no influence on it.
        hole: pixels that are to be made anew, at least one.
        grid: (h, w) of the canvas's latent map.
        corner: its cell at which the image begins.
    """

    canvas: UInt8[np.ndarray, "H W 3"]
    hole: Bool[np.ndarray, "H W"]
    grid: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


def inpaint(
    tokenizer: Tokenizer,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "mask_h mask_w 3"],
) -> Edit:
    """Fills what a mask shows.

    Args:
        tokenizer: whose tokens are edited.
        image: RGB.
        mask: a picture of the same size; what is nearer to white than to black is filled.

    Raises:
        InputError: as `latent_grid`; a mask of another size, or nothing to fill.
    """
    grid = latent_grid(tokenizer, image)
    if mask.shape != image.shape:
        raise InputError(
            f"the mask has {_size(mask)} pixels, but the image {_size(image)}: make them equal"
        )
    hole = mask.mean(axis=-1) > 127.5
    if not hole.any():
        raise InputError("the mask is black, so there is nothing to fill: make the hole white")
    return Edit(image, hole, grid)


def outpaint(
    tokenizer: Tokenizer,
    image: UInt8[np.ndarray, "h w 3"],
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
) -> Edit:
    """Extends an image beyond its frame.

    Args:
        tokenizer: whose tokens are edited.
        image: RGB.
        left: pixels to add on this side.
        right: likewise.
        top: likewise.
        bottom: likewise.

    Raises:
        InputError: as `latent_grid`; a number that is negative or that f does not divide, or none
            above 0.
    """
    h, w = latent_grid(tokenizer, image)
    f = tokenizer.downsampling
    for side, pixels in (("left", left), ("right", right), ("top", top), ("bottom", bottom)):
        if pixels < 0 or pixels % f:
            below = max(pixels // f, 0) * f
            raise InputError(
                f"{side}={pixels}: a number of pixels that f={f} divides is needed, like {below} or"
                f" {below + f}"
            )
    if not any((left, right, top, bottom)):
        raise InputError("outpainting: give a number above 0 for left, right, top or bottom")
    border = (top, bottom), (left, right)
    hole = np.pad(np.zeros(image.shape[:2], bool), border, constant_values=True)
    canvas = np.pad(image, (*border, (0, 0)), constant_values=255)
    grid = h + (top + bottom) // f, w + (left + right) // f
    return Edit(canvas, hole, grid, (top // f, left // f))


def replace(
    tokenizer: Tokenizer, image: UInt8[np.ndarray, "h w 3"], box: tuple[int, int, int, int]
) -> Edit:
    """Makes the inside of a box anew, as something of the class that the condition names.

    Args:
        tokenizer: whose tokens are edited.
        image: RGB.
        box: (x0, y0, x1, y1) in pixels, without the column x1 and the row y1.

    Raises:
        InputError: as `latent_grid`; a box that is empty or reaches outside the image.
    """
    grid = latent_grid(tokenizer, image)
    x0, y0, x1, y1 = box
    height, width, _ = image.shape
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"box={x0},{y0},{x1},{y1}: in an image of {_size(image)} pixels,"
            f" 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height} are needed"
        )
    hole = np.zeros((height, width), bool)
    hole[y0:y1, x0:x1] = True
    return Edit(image, hole, grid)


def latent_grid(tokenizer: Tokenizer, image: UInt8[np.ndarray, "h w 3"]) -> tuple[int, int]:
    """The latent grid of an image; unlike for `Tokenizer.grid`, windows need not divide it.

    Raises:
        InputError: the tokens are sparse; f does not divide a side, or a side is too short.
    """
    tokenizer.check_dense("editing")
    f = tokenizer.downsampling
    height, width, _ = image.shape
    shortest = tokenizer.shortest_side
    if min(height, width) < shortest:
        raise InputError(
            f"an image of {_size(image)} pixels is too small: the tokenizer"
            f" {type(tokenizer).__name__} needs {shortest}x{shortest}, so give a larger one"
        )
    if height % f or width % f:
        raise InputError(
            f"an image of {_size(image)} pixels: f={f} has to divide both sides, so crop or resize"
            f" it to {round(width / f) * f}x{round(height / f) * f}"
        )
    return height // f, width // f


def fill_hole(edit: Edit) -> UInt8[np.ndarray, "H W 3"]:
    """The canvas with every pixel of the hole as the nearest one outside; grey if there is none."""
    if edit.hole.all():
        return np.full_like(edit.canvas, 128)
    nearest = ndimage.distance_transform_edt(edit.hole, return_distances=False, return_indices=True)
    return edit.canvas[tuple(nearest)]


def known_tokens(
    tokenizer: Tokenizer, variables: Mapping[str, Any], edit: Edit, batch: int
) -> Tokens:
    """The tokens of a canvas that stay, those without a pixel of the hole, in so many copies.

    Args:
        tokenizer: of the canvas.
        variables: its variables.
        edit: the canvas and the hole, whose own pixels are not seen.
        batch: how many copies are wanted.
    """
    h, w = edit.grid
    unknown = einops.reduce(edit.hole, "(h p) (w q) -> (h w)", "max", h=h, w=w)
    codes = _encode(tokenizer, variables, fill_hole(edit))
    # The position of an unknown token is that of none.
    positions = jnp.where(unknown, h * w, jnp.arange(h * w, dtype=jnp.int32))
    shape = batch, h * w
    return Tokens(jnp.broadcast_to(codes, shape), jnp.broadcast_to(positions, shape), edit.grid)


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _encode(
    tokenizer: Tokenizer, variables: Mapping[str, Any], canvas: UInt8[Array, "H W 3"]
) -> Int[Array, " n"]:
    """Codes of a canvas that f divides, in raster order."""
    f = tokenizer.downsampling
    height, width, _ = canvas.shape
    image = to_float(canvas)[None]
    padding = [(0, tokenizer.fitting_side(side) - side) for side in (height, width)]
    image = jnp.pad(image, ((0, 0), *padding, (0, 0)), mode="edge")
    tokens: Tokens = tokenizer.apply(variables, image, method="encode")
    return tokens.code_map[0, : height // f, : width // f].reshape(-1)


def composite(images: UInt8[Array, "b H W 3"], edit: Edit) -> UInt8[Array, "b H W 3"]:
    """The canvas, with its hole from images of the same size."""
    return jnp.where(edit.hole[..., None], images, edit.canvas)


def show_hole(edit: Edit) -> UInt8[np.ndarray, "H W 3"]:
    """The canvas with grey diagonal hatching over the hole."""
    y, x = np.indices(edit.hole.shape)
    stripe = max(min(edit.hole.shape) // 32, 2)
    hatching = np.where((x + y) // stripe % 2, 160, 200).astype(np.uint8)
    return np.where(edit.hole[..., None], hatching[..., None], edit.canvas)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
