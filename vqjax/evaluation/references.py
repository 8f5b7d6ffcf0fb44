"""References that images are compared with: statistics and, where known, features and labels."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import ExifTags, Image

from vqjax.data.folder import list_images
from vqjax.data.images import read_image
from vqjax.errors import InputError
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.metrics.frechet import Gaussian, fit
from vqjax.evaluation.npz import (
    ImageArray,
    has_images,
    read_images,
    read_statistics,
    write_statistics,
)
from vqjax.evaluation.protocol import digest, environment, protocol_hash
from vqjax.evaluation.rows import Rows, fill, filled
from vqjax.files import cache_folder

# Features from a batch of images in 8 bits.
Measure = Callable[[UInt8[np.ndarray, "b H W 3"]], Mapping[str, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The images that others are compared with, as a network sees them.

    Attributes:
        gaussian: of their features.
        features: of each; None where only their statistics are known.
        labels: class of each; None where they are not known.
        protocol: which images they are, and the hash of their statistics.
    """

    gaussian: Gaussian
    features: Float[np.ndarray, "n d"] | None
    labels: Int[np.ndarray, " n"] | None
    protocol: dict[str, Any]

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, "n d"],
        labels: Int[np.ndarray, " n"] | None,
        identity: Mapping[str, Any],
        gaussian: Gaussian | None = None,
    ) -> "Reference":
        """A reference from features; their Gaussian is fitted if it is not given.

        Raises:
            InputError: features that are not finite, or of fewer than 2 images.
        """
        gaussian = gaussian or fit(features)
        statistics = digest({"mean": gaussian.mean, "covariance": gaussian.covariance})
        protocol = {"count": gaussian.count, "statistics": statistics}
        return cls(gaussian, features, labels, {**identity, **protocol})


class ImageFolder:
    """The images of a folder, all of one size: samples, of whoever made them."""

    def __init__(self, folder: Path):
        """Looks at the head of every file, then reads all of them for their fingerprint.

        Raises:
            InputError: no folder, fewer than 2 images, one of another size, or a greyscale one.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder: name one of images, or an .npz file")
        self.folder = folder
        self._names = list_images(folder, named="the images to compare")
        if len(self._names) < 2:
            raise InputError(f"{folder} has 1 image: at least 2 are needed to compare sets")
        self.size = self._check(self._names[0])
        for name in self._names[1:]:
            size = self._check(name)
            if size != self.size:
                raise InputError(
                    f"{folder / name} has {size[1]}x{size[0]} pixels, {self._names[0]} has"
                    f" {self.size[1]}x{self.size[0]}: resize all of them to one size"
                )
        # Last, when all of them are known to be readable.
        self.fingerprint = self._hash()

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._names)

    def batches(self, size: int, start: int = 0) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The images by their sorted names, `size` at a time, from a batch on.

        Raises:
            InputError: an image that cannot be read.
        """
        for first in range(size * start, self.count, size):
            files = [self.folder / name for name in self._names[first : first + size]]
            yield np.stack([read_image(file) for file in files])

    def _hash(self) -> str:
        """Of names and contents: samples of two models may have files of the same sizes."""
        content = hashlib.sha256()
        for name in self._names:
            data = (self.folder / name).read_bytes()
            content.update(f"{name}\0{len(data)}\n".encode() + data)
        return f"sha256 of names and contents {content.hexdigest()}"

    def _check(self, name: str) -> tuple[int, int]:
        """Height and width."""
        file = self.folder / name
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("1", "L", "I", "F")):
                    raise InputError(
                        f"{file} is greyscale: networks compare colours, so save the images as"
                        " RGB, or leave it out"
                    )
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
        except OSError as error:
            raise InputError(f"{file}: not a readable image; replace or remove it") from error


Images = ImageFolder | ImageArray


def open_images(path: Path) -> Images:
    """The images of a folder, or of an .npz file.

    Raises:
        InputError: as `ImageFolder` and `read_images`.
    """
    return read_images(path) if path.suffix == ".npz" else ImageFolder(path)


def padded(
    images: Iterable[UInt8[np.ndarray, "b H W 3"] | Float[np.ndarray, "b H W 3"]], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size for `fill`; the last one is filled up with rows that do not count."""
    for batch in images:
        missing = batch_size - len(batch)
        valid = np.arange(batch_size) < len(batch)
        yield {"image": np.pad(batch, ((0, missing), *[(0, 0)] * 3)), "valid": valid}


def read_reference(path: Path, network: FeatureNetwork, measure: Measure, batch: int) -> Reference:
    """A reference that the user names: a folder of images, or an .npz of statistics or images.

    Args:
        path: of it.
        network: whose features are wanted.
        measure: "features" of images; see `fill`.
        batch: images at a time.

    Raises:
        InputError: as `ImageFolder`, `read_statistics` and `read_images`.
    """
    gaussian = None
    if path.suffix == ".npz":
        gaussian = read_statistics(path, network.name, network.dim)
    given: dict[str, Any] = {}
    if gaussian:
        content = {"mean": gaussian.mean, "covariance": gaussian.covariance}
        given = {"from": "statistics that were given", "statistics": digest(content)}
        if not has_images(path):
            return Reference(gaussian, None, None, {"images": gaussian.count, **given})
    images = open_images(path)
    identity = {"files": images.fingerprint, "size": list(images.size)}

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        return padded(images.batches(batch, start), batch)

    reference = make_reference(identity, batches, images.count, network, measure, batch)
    if gaussian is None:
        return reference
    # The statistics may be of more images than the file has, as those of ADM's are.
    return dataclasses.replace(
        reference, gaussian=gaussian, protocol={**reference.protocol, **given}
    )


def make_reference(
    identity: Mapping[str, Any],
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    count: int,
    network: FeatureNetwork,
    measure: Measure,
    batch: int,
    modules: Sequence[str] = (),
) -> Reference:
    """The features of images, computed once and kept in the cache.

    Args:
        identity: which images they are; with the network's protocol it names the cached features.
        batches: from a batch on; see `fill`. They may have a "label".
        count: images in them.
        network: whose features are wanted.
        measure: "features" of images; see `fill`.
        batch: images at a time.
        modules: names of those that read the images; features are computed anew when the code of
            these, of the network's or of this one changes, see `source_digest`.

    Raises:
        InputError: features that are not finite, or of fewer than 2 images.
    """
    own = {"images": dict(identity), "features": network.protocol, "batch_size": batch}
    own |= environment(__name__, *network.modules, *modules)
    # int32 with -1 for those without one.
    columns = {"features": ((network.dim,), np.float32), "label": ((), np.int32)}

    def work(rows: Rows) -> None:
        statistics.unlink(missing_ok=True)
        labelled = ({"label": np.full(batch, -1, np.int32), **b} for b in batches(rows.batches))
        fill(rows, labelled, measure, math.ceil(count / batch), "reference")
        write_statistics(statistics, fit(rows["features"]), network.name)

    folder = cache_folder("features") / protocol_hash(own)[:16]
    statistics = folder / "statistics.npz"
    rows = filled(folder, count, columns, work)
    labels = rows["label"] if (rows["label"] >= 0).all() else None
    known = read_statistics(statistics, network.name, network.dim) if statistics.exists() else None
    return Reference.of(rows["features"], labels, identity, known)
