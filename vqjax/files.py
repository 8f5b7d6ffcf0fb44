"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` if nothing goes wrong.

    Its folder is made if it is not there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    yield partial
    os.replace(partial, file)


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes text, in UTF-8, or bytes, in the place of what was there."""
    with replacing(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
