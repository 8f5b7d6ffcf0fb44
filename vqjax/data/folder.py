"""A folder of image files."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, SupportsIndex

import numpy as np

from vqjax.data.images import BrokenImageError, decode_image
from vqjax.data.sources import Example, Split, files_fingerprint, held_out
from vqjax.errors import InputError

IMAGE_EXTENSIONS = (
    *(".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)


@dataclasses.dataclass
class Folder:
    """The images of one split of a folder tree; class = sub-folder, captions from a file.

    Images are taken in the order of their names, a name being the path relative to `path` with "/"
    between its parts. The class of an image is the folder part of its name ("." at the top), below
    the split's sub-folder where the split is one. The split is given in one of four ways:

    - `train_folder`, `validation_folder`: sub-folders of `path`.
    - `train_list`, `validation_list`: text files with one name a line, in the order that they give.
    - `train_range`, `validation_range`: ranges of the sorted names written as Python slices; FFHQ
      is "0:60000" and "60000:70000".
    - none of these: the `validation_fraction` whose names' hashes are lowest is held out, or with
      `split_by_content` whose files' hashes are lowest, so that copies of a file are on one side.

    Args:
        split: "train" or "validation".
        path: the folder.
        train_folder: see above; as `validation_folder`.
        validation_folder: see above.
        train_list: absolute, or relative to `path`; as `validation_list`.
        validation_list: see above.
        train_range: see above; as `validation_range`.
        validation_range: see above.
        validation_fraction: in [0, 1], for a split by hash.
        split_by_content: split by hash of the files (every file is read once at the start) instead
            of their names; the same picture in another format or size counts as another one.
        captions: file of captions, absolute or relative to `path`, with one image a line: JSON
            objects {"name": ..., "caption": ...} if it ends in .jsonl, else name, tab, caption. A
            name may have several lines: all its captions are kept, in their order.

    Raises:
        InputError: a folder or file that is missing, unreadable, or without images; a line that
            cannot be read; fields that contradict each other.
    """

    split: Split
    path: str
    train_folder: str | None = None
    validation_folder: str | None = None
    train_list: str | None = None
    validation_list: str | None = None
    train_range: str | None = None
    validation_range: str | None = None
    validation_fraction: float = 0.1
    split_by_content: bool = False
    captions: str | None = None

    def __post_init__(self) -> None:
        self._root = Path(self.path).expanduser()
        way = self._way_to_split()
        if way == "folder":
            self._split_by_folder()
        else:
            names = list_images(self._root)
            self._class_names = tuple(sorted({_parent(name) for name in names}))
            self._names = self._chosen(names, way)
            self._labels = self._label(_parent(name) for name in self._names)
        if not self._names:
            _fail("path", f"{self._root} has no {self.split} images with the given fields")
        self._captions = self._read_captions() if self.captions else {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The folders that contain images, sorted."""
        return self._class_names

    @property
    def fingerprint(self) -> str:
        """Hash of the split's names and file sizes."""
        return files_fingerprint(self._root, self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: SupportsIndex) -> Example:
        name = self._names[index]
        path = self._root / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BrokenImageError(f"{path}: cannot be read ({error.strerror})") from error
        return Example(
            image=decode_image(data, str(path)),
            label=int(self._labels[index]),
            captions=self.captions_of(int(index)),
            name=name,
        )

    def prepare(self) -> None:
        """Does nothing: the images are there."""

    def captions_of(self, index: int) -> tuple[str, ...]:
        """All lines of the file of captions on an image."""
        return self._captions.get(self._names[index], ())

    def name_of(self, index: int) -> str:
        """Path of an image's file, relative to the folder."""
        return self._names[index]

    def _way_to_split(self) -> str:
        ways = [
            way
            for way in ("folder", "list", "range")
            if getattr(self, f"train_{way}") or getattr(self, f"validation_{way}")
        ]
        if len(ways) > 1:
            _fail(f"train_{ways[1]}", f"the split is already given by {ways[0]}; set one pair")
        if ways and not getattr(self, f"{self.split}_{ways[0]}"):
            _fail(f"{self.split}_{ways[0]}", "not set, though its counterpart is; set both")
        if ways and self.split_by_content:
            _fail("split_by_content", f"the split is already given by {ways[0]}; leave one out")
        return ways[0] if ways else "hash"

    def _split_by_folder(self) -> None:
        # Both splits are listed, so that a class has the same label in each.
        listed = {}
        for split in ("train", "validation"):
            folder = getattr(self, f"{split}_folder")
            if folder:
                listed[split] = list_images(self._root / folder)
        everything = [name for names in listed.values() for name in names]
        self._class_names = tuple(sorted({_parent(name) for name in everything}))
        self._labels = self._label(_parent(name) for name in listed[self.split])
        folder = Path(getattr(self, f"{self.split}_folder"))
        self._names = [(folder / name).as_posix() for name in listed[self.split]]

    def _label(self, parents: Iterable[str]) -> np.ndarray:
        index = {name: label for label, name in enumerate(self._class_names)}
        return np.array([index[parent] for parent in parents], np.int32)

    def _chosen(self, names: list[str], way: str) -> list[str]:
        if way == "list":
            return self._names_in_list(names)
        if way == "range":
            field = f"{self.split}_range"
            match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", getattr(self, field))
            if match is None:
                _fail(field, f"{getattr(self, field)!r} is not a range; write it like 0:60000")
            return names[slice(*(int(bound) if bound else None for bound in match.groups()))]
        validation = self.split == "validation"
        keys = _digests(self._root, tuple(names)) if self.split_by_content else names
        return [
            name
            for name, key in zip(names, keys, strict=True)
            if held_out(key, self.validation_fraction) == validation
        ]

    def _names_in_list(self, names: list[str]) -> list[str]:
        field = f"{self.split}_list"
        known = set(names)
        listed = [line.strip() for line in self._lines(field) if line.strip()]
        for number, name in enumerate(listed, start=1):
            if name not in known:
                _fail(field, f"entry {number}, {name!r}, is not an image below {self._root}")
        return listed

    def _read_captions(self) -> dict[str, tuple[str, ...]]:
        captions: dict[str, list[str]] = {}
        as_json = str(self.captions).endswith(".jsonl")
        for number, line in enumerate(self._lines("captions"), start=1):
            if not line.strip():
                continue
            try:
                if as_json:
                    entry = json.loads(line)
                    name, caption = str(entry["name"]), str(entry["caption"])
                else:
                    name, caption = line.split("\t", maxsplit=1)
            except (ValueError, KeyError, TypeError):
                wanted = '{"name": ..., "caption": ...}' if as_json else "name, tab, caption"
                _fail("captions", f"line {number} of {self.captions} is not {wanted}")
            captions.setdefault(name, []).append(caption.strip())
        kept = {name: tuple(captions[name]) for name in self._names if name in captions}
        if not kept:
            _fail("captions", f"{self.captions} names none of the images, such as {self._names[0]}")
        return kept

    def _lines(self, field: str) -> list[str]:
        path = self._root / Path(getattr(self, field)).expanduser()
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            _fail(field, f"{path} cannot be read as text ({error})")


def list_images(root: Path, named: str = "config.data.source.path") -> list[str]:
    """Names of the image files below a folder: relative paths with "/", sorted.

    Files are known by their extension; hidden ones are left out, links to folders are followed.

    Args:
        root: the folder.
        named: what errors call it.

    Raises:
        InputError: the folder is missing, cannot be read, or has no image in it.
    """
    if not root.is_dir():
        raise InputError(f"{named}: {root} is not a folder; give the path of a folder of images")

    def unreadable(error: OSError) -> NoReturn:
        raise InputError(f"{named}: {error.filename} cannot be read ({error.strerror})")

    names = []
    for folder, _, files in os.walk(root, onerror=unreadable, followlinks=True):
        relative = Path(folder).relative_to(root)
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_EXTENSIONS:
                names.append((relative / file).as_posix())
    if not names:
        extensions = " ".join(IMAGE_EXTENSIONS)
        raise InputError(f"{named}: {root} has no images in it; looked for {extensions}")
    return sorted(names)


# Both splits of a folder ask.
@functools.lru_cache(maxsize=1)
def _digests(root: Path, names: tuple[str, ...]) -> list[str]:
    """Hex digests of files' contents."""
    digests = []
    for name in names:
        try:
            with (root / name).open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            _fail("split_by_content", f"{root / name} cannot be read ({error.strerror})")
    return digests


def _parent(name: str) -> str:
    return os.path.dirname(name) or "."


def _fail(field: str, message: str) -> NoReturn:
    raise InputError(f"config.data.source.{field}: {message}")
