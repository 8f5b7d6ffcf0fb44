"""Images: files decoded to RGB, and RGB cropped to squares of the wanted size."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vqjax.errors import InputError

# Large images are welcome (Pillow still refuses those above twice its limit) and damaged metadata
# says nothing about the pixels: neither is worth a line in the middle of a progress bar.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="(Possibly )?[Cc]orrupt EXIF data", module="PIL")

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class BrokenImageError(InputError):
    """An image of the data set cannot be decoded; the message names it."""


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to 8-bit RGB, upright.

    16-bit values are scaled to 8 bits, grey and palette images become RGB, transparent pixels are
    composited on white, CMYK is converted without a colour profile, the EXIF orientation is
    applied, and of an animation the first frame is taken.

    Args:
        data: the bytes of the file, in any format that Pillow reads.
        name: what the error calls it.

    Raises:
        BrokenImageError: truncated, not an image, too large to be one, or with 32-bit pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # Unreadable EXIF does not make the pixels unreadable.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(_to_rgb(image))
    # Pillow's decoders raise nearly every built-in exception on damaged bytes.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError(
            f"{name}: not a readable image ({reason}); replace or remove it, "
            "or set config.data.on_broken='skip' to go on without it"
        ) from error


def read_image(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file that the user names, as `decode_image` makes it.

    Raises:
        InputError: it is not there or cannot be read.
    """
    try:
        return decode_image(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; name an image file") from None
    except BrokenImageError as error:
        raise InputError(f"{file}: not a readable image; name another one") from error


def center_crop(
    image: UInt8[np.ndarray, "h w 3"], resolution: int
) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """The central square of an image at `resolution` pixels a side (Lanczos, antialiased)."""
    height, width, _ = image.shape
    side = min(height, width)
    return _resized_square(image, (height - side) // 2, (width - side) // 2, side, resolution)


def random_crop(
    image: UInt8[np.ndarray, "h w 3"],
    resolution: int,
    rng: np.random.Generator,
    min_scale: float = 1.0,
) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """A square at a random place, at `resolution` pixels a side (Lanczos, antialiased).

    Args:
        image: pixels of any size.
        resolution: side of the result, in pixels.
        rng: three numbers are drawn, whatever the image.
        min_scale: side of the smallest square relative to the image's shorter side, in (0, 1]; the
            side is drawn uniformly between that and the whole shorter side.
    """
    height, width, _ = image.shape
    scale, y, x = rng.random(3)
    side = max(1, round(min(height, width) * (1 - scale * (1 - min_scale))))
    top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
    return _resized_square(image, top, left, side, resolution)


def random_flip(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image, mirrored left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def _resized_square(
    image: UInt8[np.ndarray, "h w 3"], top: int, left: int, side: int, resolution: int
) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    square = image[top : top + side, left : left + side]
    if side == resolution:
        return square
    # Pillow's filters widen with the scale, so shrinking is antialiased.
    size = (resolution, resolution)
    return np.asarray(Image.fromarray(square).resize(size, Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow decodes a 16-bit PGM to mode "I", scaled to 16 bits, and would clip both on conversion.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
