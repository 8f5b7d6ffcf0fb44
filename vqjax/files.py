"""Files that are there whole or not at all, whenever the process is killed; locks; the cache."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` if nothing goes wrong.

    Its folder is made if it is not there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes text, in UTF-8, or bytes, in the place of what was there."""
    with replacing(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process at a time; the others wait, and say so once. A killed one holds up nobody.

    Args:
        file: that stands for what is locked; it is made, and stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("another process is at work in %s: waiting for it", file.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_folder(name: str) -> Path:
    """The folder of a user's files that can be made again; it may not be there yet.

    On Linux $XDG_CACHE_HOME/vqjax/<name>, or ~/.cache/vqjax/<name>.
    """
    return platformdirs.user_cache_path("vqjax", appauthor=False) / name
