"""Vector images to pixels, once: a memory-mapped cache of rendered SVG files."""

import concurrent.futures
import errno
import functools
import io
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import resvg_py
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from vqjax.errors import InputError
from vqjax.files import locked

# Below this resolution one process is done before others have started.
_PARALLEL_FROM = 128


def render_svg(svg: Path, resolution: int) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """Draws an SVG file, antialiased, on white, scaled to `resolution` pixels a side."""
    # No system fonts: the pixels must not depend on what the machine has installed.
    png = resvg_py.svg_to_bytes(
        svg_string=svg.read_text(encoding="utf-8"),
        width=resolution,
        height=resolution,
        background="white",
        skip_system_fonts=True,
    )
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def open_rendered(
    svgs: Sequence[Path], resolution: int, cache: Path
) -> UInt8[np.ndarray, "n {resolution} {resolution} 3"]:
    """Opens the rendered images of `svgs`, rendering them first where the cache has no valid file.

    The file appears under its name only when it is complete. Processes that start together wait for
    the first of them. Memory stays that of one image per core at any resolution.

    Args:
        svgs: the files; their order is that of the result.
        resolution: side in pixels.
        cache: path of the `.npy` file; one that has another shape, or is cut short, is replaced.

    Returns:
        A read-only memory map.

    Raises:
        InputError: the cache cannot be written.
    """
    shape = (len(svgs), resolution, resolution, 3)
    images = _open_valid(cache, shape)
    if images is not None:
        return images
    try:
        with locked(cache.with_suffix(".lock")):
            # Another process may have finished while this one waited.
            if _open_valid(cache, shape) is None:
                _render_all(svgs, resolution, cache, shape)
    except OSError as error:
        raise InputError(
            f"cannot write the image cache {cache} ({np.prod(shape) / 1e9:.2f} GB): "
            f"{error.strerror or error}; set config.data.source.cache_dir to a folder with room"
        ) from error
    return np.load(cache, mmap_mode="r")


def _open_valid(cache: Path, shape: tuple[int, ...]) -> np.memmap | None:
    try:
        images = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    valid = isinstance(images, np.memmap) and images.dtype == np.uint8 and images.shape == shape
    return images if valid else None


def _render_all(svgs: Sequence[Path], resolution: int, cache: Path, shape: tuple[int, ...]) -> None:
    free = shutil.disk_usage(cache.parent).free
    if free < np.prod(shape):
        raise OSError(errno.ENOSPC, f"only {free / 1e9:.2f} GB free on the disk")
    # The lock leaves one writer, so a partial file can only be that of a killed run.
    partial = cache.with_suffix(".partial")
    offset = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape).offset
    write = functools.partial(_render_into, partial, offset, resolution)
    progress = functools.partial(
        tqdm,
        total=len(svgs),
        desc=f"rendering at {resolution} px",
        unit="image",
        mininterval=0.5,
    )
    if resolution < _PARALLEL_FROM or os.cpu_count() == 1:
        for _ in progress(map(write, range(len(svgs)), svgs)):
            pass
    else:
        # Spawned, because forking a process in which JAX runs threads can deadlock.
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(mp_context=spawn) as executor:
            for _ in progress(executor.map(write, range(len(svgs)), svgs, chunksize=8)):
                pass
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(cache)


def _render_into(partial: Path, offset: int, resolution: int, index: int, svg: Path) -> None:
    pixels = render_svg(svg, resolution)
    # Writing to the file rather than to a map of it: a full disk is then an error, not a signal.
    with partial.open("r+b") as file:
        file.seek(offset + index * pixels.nbytes)
        file.write(pixels.tobytes())
