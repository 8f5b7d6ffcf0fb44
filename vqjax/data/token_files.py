"""Tokens of a data set on disk, as `vqjax tokenize` writes them.

A folder of tokens has `tokens.json`, which says of what and how they were made, and shards,
`tokens-00003-of-00017.array_record`: of contiguous images in the order of their data set. A shard
is there under its name when it is whole. A record is an image: a line of JSON, its label and
captions, then the codes of its views and, of a sparse tokenizer, their positions, little-endian.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from vqjax.data.token_sets import TokenForm, TokenizedImage
from vqjax.errors import InputError
from vqjax.files import replacing

FILE = "tokens.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class TokenSetRecord:
    """What `tokens.json` holds.

    Attributes:
        made_of: the tokenizer and the data, as nested dicts of what JSON can hold.
        images: how many there are.
        seed: of views that were drawn.
        shard_images: images of a shard; the last one may have fewer.
        form: of each image's tokens.
    """

    made_of: dict[str, Any]
    images: int
    seed: int
    shard_images: int
    form: TokenForm

    @property
    def shards(self) -> list["Shard"]:
        """All shards, in the order of their images."""
        starts = range(0, self.images, self.shard_images)
        return [
            Shard(
                f"tokens-{number:05d}-of-{len(starts):05d}.array_record",
                range(start, min(start + self.shard_images, self.images)),
            )
            for number, start in enumerate(starts)
        ]

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TokenSetRecord":
        """The record of a file's content; raises ValueError, KeyError or TypeError for another."""
        content = json.loads(text)
        if content.pop("format") != _FORMAT:
            raise ValueError("of another version")
        form = content.pop("form")
        form["grid"] = tuple(form["grid"])
        return cls(**content, form=TokenForm(**form))


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of tokens, and the images whose they are."""

    name: str
    images: range


def to_record(form: TokenForm, image: TokenizedImage) -> bytes:
    """The record of an image."""
    told = {"label": image["label"], "captions": image["captions"]}
    named: Mapping[str, Any] = image
    arrays = (np.asarray(named[name], form.dtype).tobytes() for name in form.arrays)
    # JSON of one line has no newline in it.
    return json.dumps(told).encode() + b"\n" + b"".join(arrays)


def from_record(form: TokenForm, record: bytes) -> TokenizedImage:
    """The image of a record."""
    told, _, content = record.partition(b"\n")
    parts = np.frombuffer(content, form.dtype).reshape(-1, form.views, form.per_image)
    image: Any = dict(zip(form.arrays, parts, strict=True)) | json.loads(told)
    return image | {"captions": tuple(image["captions"])}


def read_record(folder: Path, named: str) -> TokenSetRecord | None:
    """What a folder says of its tokens; None where it says nothing.

    Args:
        folder: of the tokens.
        named: the setting and its value, for messages.

    Raises:
        InputError: it is damaged, or of another version.
    """
    try:
        return TokenSetRecord.from_json((folder / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{named}: {FILE} there is not that of tokens ({type(e).__name__}: {e}):"
            " delete the folder and write it again by vqjax tokenize"
        ) from None


def write_shards(
    folder: Path, form: TokenForm, shards: Iterable[Shard], images: Iterable[TokenizedImage]
) -> Iterator[Shard]:
    """Writes shards, and yields each when it is there.

    Args:
        folder: of the tokens.
        form: of the tokens.
        shards: to be written.
        images: of these shards, in their order.
    """
    rows = iter(images)
    for shard in shards:
        with replacing(folder / shard.name) as partial:
            # One record a group: any of them is read without the others.
            writer = ArrayRecordWriter(str(partial), "group_size:1")
            written = 0
            try:
                for image in itertools.islice(rows, len(shard.images)):
                    writer.write(to_record(form, image))
                    written += 1
            finally:
                writer.close()
            if written < len(shard.images):
                raise InputError(
                    f"{shard.name}: {written} of {len(shard.images)} images came: the data set has"
                    " changed while it was read; give the command again"
                )
        yield shard


def missing_shards(
    folder: Path, shards: Sequence[Shard], index: int = 0, count: int = 1
) -> list[Shard]:
    """The shards that are not there yet, of those that fall to the `index`-th of `count` processes.

    Every `count`-th shard is of one process, whatever is there already.
    """
    return [shard for shard in shards[index::count] if not (folder / shard.name).exists()]


class TokensOnDisk:
    """Tokens that `vqjax tokenize` has written.

    Attributes:
        record: what they are of.
    """

    def __init__(self, folder: Path, named: str):
        """Opens a folder of tokens.

        Args:
            folder: of the tokens.
            named: the setting and its value, for messages.

        Raises:
            InputError: there are none, or not all of them, or a shard is damaged.
        """
        record = read_record(folder, named)
        if record is None:
            raise InputError(
                f"{named}: there is no {FILE} in that folder: write tokens by vqjax tokenize"
            )
        self.record = record
        self._folder, self._named = folder, named
        missing = missing_shards(folder, record.shards)
        if missing:
            raise InputError(
                f"{named}: {len(missing)} of {len(record.shards)} shards are not there, such as"
                f" {missing[0].name}: give the command that writes them again, which goes on"
            )
        if len(self._records) != len(self):
            raise InputError(
                f"{named}: the shards have {len(self._records)} images, and {FILE} says"
                f" {len(self)}: delete the folder and write it again by vqjax tokenize"
            )

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        for shard in self.record.shards:
            # Alone, so that a damaged one can be named.
            try:
                ArrayRecordDataSource([str(self._folder / shard.name)])
            except Exception as e:
                raise InputError(
                    f"{self._named}: {shard.name} is damaged ({e}): delete it and give the command"
                    " that writes the tokens again"
                ) from None
        return ArrayRecordDataSource([str(self._folder / s.name) for s in self.record.shards])

    def __len__(self) -> int:
        return self.record.images

    def __getitem__(self, index: int) -> TokenizedImage:
        try:
            return from_record(self.record.form, self._records[index])
        except Exception as e:
            shard = self.record.shards[index // self.record.shard_images].name
            raise InputError(
                f"{self._named}: the tokens of image {index} in {shard} are damaged ({e}): delete"
                " it and give the command that writes the tokens again"
            ) from None
