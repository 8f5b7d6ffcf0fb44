"""Shows where an image changes when a region of its codes does. Source: paper 000, figure 1.

    vqjax locality --workdir=runs/openmoji [--image=a.png --box=2,2,4,4 --resolution=128]

All codes of the region are replaced by one code. The picture shows the image, its reconstruction,
the one with the codes replaced, and where the two differ (dark to white, the square root of the
difference, so that small ones show), each with the outline of the region. How fast the change falls
off around it is told in numbers: where attention is global, every pixel may change, and what counts
is how much.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from vqjax.data import build_source
from vqjax.data.images import center_crop, read_image
from vqjax.errors import InputError
from vqjax.files import open_path, write_png
from vqjax.generation.image_grid import image_grid
from vqjax.generation.run import Run
from vqjax.parallel import make_mesh
from vqjax.pixels import to_float
from vqjax.programs import command_line
from vqjax.tokens import Tokens
from vqjax.training.console import setup_logging

Box = tuple[int, int, int, int]

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
IMAGE = flags.DEFINE_string("image", "", "Image to change [the first one of the validation split]")
RESOLUTION = flags.DEFINE_integer("resolution", None, "Side it is brought to [the run's]")
BOX = flags.DEFINE_list(
    "box", None, "Region x0,y0,x1,y1 in latent cells, the last ones excluded [a central sixteenth]"
)
CODE = flags.DEFINE_integer("code", 0, "Code that takes the place of the region's")
OUT = flags.DEFINE_string("out", "", "Picture to write [<workdir>/locality.png]")
flags.mark_flag_as_required("workdir")


def distance_to_box(size: tuple[int, int], box: Box) -> Int[np.ndarray, "h w"]:
    """Pixels from a box to each pixel of a map of this size, along the axis where it is farther."""
    (height, width), (x0, y0, x1, y1) = size, box
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    return np.maximum.reduce(np.broadcast_arrays(0, x0 - x, x - x1 + 1, y0 - y, y - y1 + 1))


def reach(change: Float[np.ndarray, "h w"], box: Box, share: float) -> int:
    """Pixels beyond a box within which a share of the summed change lies.

    Args:
        change: at least 0; not 0 everywhere.
        box: x0, y0, x1, y1 in pixels, the last ones excluded.
        share: in (0, 1]; 1 gives the farthest pixel with any change at all.
    """
    distance = distance_to_box(change.shape, box)
    if share == 1:
        return int(distance[change > 0].max())
    within = np.cumsum(np.bincount(distance.ravel(), change.ravel()))
    return int(np.searchsorted(within, share * within[-1]))


def falloff(change: Float[np.ndarray, "h w"], box: Box, step: int) -> Float[np.ndarray, "rings"]:
    """Mean change in a box, then in each ring of `step` pixels around it, as far as there are any.

    Args:
        change: at least 0.
        box: x0, y0, x1, y1 in pixels, the last ones excluded.
        step: width of a ring, at least 1.
    """
    rings = -(-distance_to_box(change.shape, box) // step).ravel()
    return np.bincount(rings, change.ravel()) / np.bincount(rings)


def heat_map(change: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Change as colours in [-1, 1]: from black by way of red and yellow to white."""
    heat = np.sqrt(change / change.max())[..., None]
    return 2 * np.clip(3 * heat - np.arange(3), 0, 1) - 1


def strip(images: Float[np.ndarray, "n h w 3"], box: Box) -> UInt8[np.ndarray, "height width 3"]:
    """Images in a row, as `image_grid` makes it, with the outline of a box of pixels in each."""
    grid = image_grid(images, columns=len(images))
    factor = grid.shape[0] // images.shape[1]
    side = images.shape[2] * factor
    picture = Image.fromarray(grid)
    draw = ImageDraw.Draw(picture)
    for left in np.linspace(0, grid.shape[1] - side, len(images)):
        x0, y0, x1, y1 = (factor * number for number in box)
        draw.rectangle((left + x0, y0, left + x1 - 1, y1 - 1), outline=(0, 255, 0))
    return np.asarray(picture)


def main() -> None:
    """Encodes an image, changes codes, decodes before and after, draws and tells the reach."""
    workdir = open_path(WORKDIR.value or "", "--workdir")
    run = Run(workdir, make_mesh({"data": 1}, jax.local_devices()[:1]))
    tokenizer, data = run.tokenizer, run.config.data
    tokenizer.check_dense("locality")
    resolution = data.resolution if RESOLUTION.value is None else RESOLUTION.value
    grid = tokenizer.grid(resolution, resolution)
    cells = _box(grid)
    if not 0 <= CODE.value < tokenizer.num_codes:
        raise InputError(f"--code={CODE.value}: one from 0 to {tokenizer.num_codes - 1} is needed")
    if IMAGE.value:
        pixels = read_image(Path(IMAGE.value))
    else:
        pixels = build_source(data.source, "validation", resolution)[0]["image"]
    log = setup_logging(workdir)

    cropped = center_crop(pixels, resolution)[None]
    image = np.asarray(to_float(cropped))
    codes = run.encode(cropped).code_map
    x0, y0, x1, y1 = cells
    changed = codes.at[:, y0:y1, x0:x1].set(CODE.value)
    if jnp.array_equal(codes, changed):
        raise InputError(f"--code={CODE.value}: the region has no other code; give another one")
    apply: Any = jax.jit(tokenizer.apply, static_argnames=("method",))
    before, after = (
        np.asarray(apply(run.tokenizer_variables, Tokens.dense(c), method="decode"))
        for c in (codes, changed)
    )
    change = np.abs(after - before).max(axis=(0, 3))

    f = tokenizer.downsampling
    x0, y0, x1, y1 = (f * number for number in cells)
    box = x0, y0, x1, y1
    out = open_path(OUT.value, "--out") if OUT.value else workdir / "locality.png"
    row = np.concatenate([image, before, after, heat_map(change)[None]])
    write_png(out, strip(row, box))
    most, farthest = reach(change, box, 0.99), reach(change, box, 1.0)
    log.info("99 %% of the change: within %s of the region", _both_units(most, f))
    if farthest < distance_to_box(change.shape, box).max():
        log.info("all of it: within %s; beyond, nothing changes", _both_units(farthest, f))
    else:
        log.info(
            "it reaches the border of the image: a larger --resolution shows where it ends, unless"
            " the tokenizer looks at the whole image"
        )
    region, *rings = falloff(change, box, f)
    shares = (f"{100 * mean / region:.1f} % at {cells}" for cells, mean in enumerate(rings[:8], 1))
    log.info("mean change by latent cells from the region, of that inside: %s", ", ".join(shares))
    log.info("image, reconstruction, with the codes changed, difference: %s", out)


def _both_units(pixels: int, downsampling: int) -> str:
    return f"{pixels} pixels ({pixels / downsampling:.1f} latent cells)"


def _box(grid: tuple[int, int]) -> Box:
    """The region that is asked for, or the middle."""
    height, width = grid
    if BOX.value is None:
        h, w = max(height // 4, 1), max(width // 4, 1)
        y, x = (height - h) // 2, (width - w) // 2
        return x, y, x + w, y + h
    x0, y0, x1, y1 = command_line.read_box(BOX.value)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"--box={','.join(BOX.value)}: x0 < x1 from 0 to {width} and y0 < y1 from 0 to"
            f" {height} are needed, in latent cells"
        )
    return x0, y0, x1, y1
