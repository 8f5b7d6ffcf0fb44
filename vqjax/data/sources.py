"""The interface of a data set to the pipeline, and a stable split of one by hash."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8

Split = Literal["train", "validation"]


class Example(TypedDict):
    """One image of a source.

    Attributes:
        image: its pixels, of any size.
        label: its class.
        captions: all texts that describe it, in the data set's order; empty if there are none.
        name: what it is called in messages, unique within the source.
    """

    image: UInt8[np.ndarray, "h w 3"]
    label: int
    captions: tuple[str, ...]
    name: str


@runtime_checkable
class Source(Protocol):
    """Random access to the images of one split of a data set.

    Sources are dataclasses whose fields are the config's `data.source`. They are pickled into the
    worker processes, so they hold names and indices, never pixels or open files. Reading an image
    that cannot be decoded raises `vqjax.data.images.BrokenImageError`.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by its label; the same for both splits."""
        ...

    @property
    def fingerprint(self) -> str:
        """An identifier of the set of images, wherever they lie: for the protocol of a result."""
        ...

    def prepare(self) -> None:
        """Does the slow work that has to be done once, before images are read."""
        ...

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The captions of an image, which is not read for them."""
        ...

    def name_of(self, index: int) -> str:
        """What an image is called in messages, as its example says."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Example: ...


def files_fingerprint(root: Path, names: Iterable[str]) -> str:
    """Hex digest of the names and sizes of files below a folder, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{(root / name).stat().st_size}\n".encode())
    return f"sha256 of names and sizes {digest.hexdigest()}"


def held_out(key: str, fraction: float) -> bool:
    """True if the hash of `key` puts it in the validation split.

    The answer depends on nothing else, so adding or removing other images never moves one across.

    Args:
        key: what is kept on one side of the split, for example a file name.
        fraction: expected share of the keys that is held out, in [0, 1].
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
