"""Statistics and images in the .npz files of ADM's evaluator (Dhariwal and Nichol 2021).

A file has "mu" and "sigma" of the features, or "arr_0", images in 8 bits, or both. Arrays are read
and written in parts, so that memory does not grow with their number.
"""

import dataclasses
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vqjax.errors import InputError
from vqjax.evaluation.metrics.frechet import Gaussian
from vqjax.files import replacing

# Which network our own files are of; those of others do not say.
_NETWORK = "network"
_IMAGES = "arr_0.npy"


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """The images of an .npz file.

    Attributes:
        file: that has them.
        count: number of images.
        size: (height, width) in pixels.
    """

    file: Path
    count: int
    size: tuple[int, int]

    @property
    def fingerprint(self) -> str:
        """Checksum of the array, which the file has anyway."""
        with _open(self.file) as archive:
            return f"crc32 of arr_0 {archive.getinfo(_IMAGES).CRC:08x}"

    def batches(self, size: int, start: int = 0) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The images in order, `size` at a time, from a batch on; the last one may be smaller."""
        with _open(self.file) as archive, archive.open(_IMAGES) as stream:
            (_, *shape), _ = _header(stream)
            bytes_each = math.prod(shape)
            # Compressed streams are skipped by reading them.
            stream.seek(size * start * bytes_each, os.SEEK_CUR)
            for first in range(size * start, self.count, size):
                rows = min(size, self.count - first)
                content = stream.read(rows * bytes_each)
                yield np.frombuffer(content, np.uint8).reshape(rows, *shape)


def read_statistics(file: Path, network: str, dim: int) -> Gaussian | None:
    """The Gaussian of a file; None if it has images alone, or images and that of another network.

    Args:
        file: the .npz.
        network: whose features are wanted, `FeatureNetwork.name`.
        dim: of its features.

    Raises:
        InputError: not such a file, statistics of another network, or values that are not finite.
    """
    with _open(file) as archive:
        names = set(archive.namelist())
        if not {"mu.npy", "sigma.npy"} <= names:
            if _IMAGES in names:
                return None
            arrays = ", ".join(sorted(name.removesuffix(".npy") for name in names)) or "nothing"
            raise InputError(
                f"{file} has {arrays} in it: mu and sigma, or images as arr_0, are needed"
            )
    with np.load(file) as content:
        theirs = str(content[_NETWORK]) if _NETWORK in content else None
        mean, covariance = (np.asarray(content[n], np.float64) for n in ("mu", "sigma"))
        count = int(content["count"]) if "count" in content else None
    other = theirs not in (None, network) or mean.shape != (dim,) or covariance.shape != (dim, dim)
    if other and _IMAGES in names:
        return None
    if theirs not in (None, network):
        raise InputError(f"{file} has statistics of the network {theirs}, not of {network}")
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise InputError(
            f"{file} has mu {list(mean.shape)} and sigma {list(covariance.shape)}, {network} has"
            f" {dim} features: it is of another network; choose that one with --network"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{file}: its statistics are not finite; make it anew")
    return Gaussian(mean, covariance, count)


def write_statistics(file: Path, gaussian: Gaussian, network: str) -> None:
    """Writes a Gaussian for this and other evaluators.

    Args:
        file: to write, whole or not at all.
        gaussian: of the features.
        network: whose features they are.
    """
    arrays: dict[str, Any] = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    arrays[_NETWORK] = np.array(network)
    if gaussian.count is not None:
        arrays["count"] = np.array(gaussian.count)
    with replacing(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def has_images(file: Path) -> bool:
    """True if a file has images, which `read_images` reads.

    Raises:
        InputError: it is no .npz file.
    """
    with _open(file) as archive:
        return _IMAGES in archive.namelist()


def read_images(file: Path) -> ImageArray:
    """The images of a file; their pixels are read later.

    Raises:
        InputError: not such a file, or an array that is no RGB images in 8 bits.
    """
    with _open(file) as archive:
        if _IMAGES not in archive.namelist():
            raise InputError(f"{file} has no images: the array arr_0 is needed")
        with archive.open(_IMAGES) as stream:
            shape, dtype = _header(stream)
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
        raise InputError(
            f"{file}: arr_0 is {dtype}{list(shape)}; RGB images, uint8 [n, height, width, 3], are"
            " needed"
        )
    return ImageArray(file, shape[0], (shape[1], shape[2]))


def write_images(
    file: Path,
    batches: Iterable[UInt8[np.ndarray, "b H W 3"]],
    shape: tuple[int, int, int, int],
    labels: Int[np.ndarray, " n"] | None = None,
) -> None:
    """Writes images as "arr_0", and labels as "arr_1", for this and other evaluators.

    Args:
        file: to write, whole or not at all.
        batches: the images in order.
        shape: (n, H, W, 3) of all of them.
        labels: of the images.
    """
    with (
        replacing(file) as partial,
        # Stored, as images hardly get smaller and other programs map them.
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(_IMAGES, "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for images in batches:
                stream.write(np.ascontiguousarray(images).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as stream:
                np.lib.format.write_array(stream, np.asarray(labels, np.int64))


def _open(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "it is no .npz file"
        raise InputError(f"{file} cannot be read ({reason}): name an .npz file") from None


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in C order that a stream begins with."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise InputError(f"arr_0 is of .npy version {version}; save it with numpy 1.9 or newer")
    shape, fortran_order, dtype = read[version](stream)
    if fortran_order:
        raise InputError("arr_0 is in Fortran order; save it in C order (np.ascontiguousarray)")
    return shape, dtype
