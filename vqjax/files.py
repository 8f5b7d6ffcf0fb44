"""Files on this machine or in a bucket, there whole or not at all; locks; the cache folder."""

import contextlib
import importlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import numpy as np
import platformdirs
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vqjax.errors import InputError

log = logging.getLogger(__name__)


def open_path(text: str, name: str) -> epath.Path:
    """The file or folder that a setting names: any local path, or gs://bucket/path.

    Args:
        text: value of the setting.
        name: of the setting, for messages: "--workdir".

    Raises:
        InputError: a URL of another kind, or the bucket cannot be used.
    """
    if not re.match(r"[a-z][a-z0-9+.-]*://|gs:", text, re.IGNORECASE):
        return _local_path(Path(text))
    if not re.match(r"gs://[^/]", text):
        raise InputError(
            f"{name}={text}: a local path or gs://bucket/folder is needed; checkpoints can be"
            " written to no other kind of URL"
        )
    path = epath.Path(text)
    try:
        path.exists()
        # Orbax asks it what kind of bucket it is.
        importlib.import_module("google.cloud.storage")
    except ImportError:
        raise InputError(f"{name}={text}: a bucket needs a package: pip install gcsfs") from None
    # Libraries of a cloud raise what they like: for want of a network, of credentials, of rights.
    except Exception as e:
        raise InputError(
            f"{name}={text}: the bucket cannot be used ({type(e).__name__}: {e}); see to its name,"
            " the network and the credentials (gcloud auth application-default login)"
        ) from None
    return path


def _local_path(path: Path) -> epath.Path:
    if is_remote(epath.Path(path.absolute())):
        # etils takes /gs/x for gs://x, but not //gs/x, which is the same folder.
        return epath.Path(Path(f"/{path.absolute()}"))
    return epath.Path(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that does not depend on the working directory."""
    # etils makes gs://bucket, too, a folder in the working directory.
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def is_remote(path: epath.PathLike) -> bool:
    """True for a path of a bucket."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def replacing(file: epath.PathLike) -> Iterator[Path]:
    """A local path to write to, which takes the place of `file` if nothing goes wrong.

    Its folder is made if it is not there.
    """
    if is_remote(file):
        with tempfile.TemporaryDirectory(prefix="vqjax-") as folder:
            partial = Path(folder) / "partial"
            yield partial
            epath.Path(file).write_bytes(partial.read_bytes())
        return
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(file: epath.PathLike, content: str | bytes) -> None:
    """Writes text, in UTF-8, or bytes, in the place of what was there."""
    content = content.encode() if isinstance(content, str) else content
    if is_remote(file):
        # An object appears when all of it has arrived.
        epath.Path(file).write_bytes(content)
        return
    with replacing(file) as partial:
        partial.write_bytes(content)


def write_png(file: epath.PathLike, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a picture in the place of what was there."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    write_whole(file, png.getvalue())


class StagedFolder:
    """A local folder to append to; for one in a bucket a temporary copy, which is uploaded.

    An object of a bucket cannot grow, so `upload` writes every file that has changed anew.

    Attributes:
        local: the folder itself, or its copy.
    """

    def __init__(self, folder: epath.PathLike, resumed: Sequence[str] = ()):
        """Makes the folder.

        Args:
            folder: on disk or in a bucket.
            resumed: names of the files in it that are gone on with.
        """
        self._folder = epath.Path(folder)
        self._remote = is_remote(folder)
        self._uploaded: dict[str, tuple[int, int]] = {}
        if not self._remote:
            self.local = Path(folder)
            self.local.mkdir(parents=True, exist_ok=True)
            return
        # Kept, as it is deleted with the object.
        self._temporary = tempfile.TemporaryDirectory(prefix="vqjax-", ignore_cleanup_errors=True)
        self.local = Path(self._temporary.name)
        for name in resumed:
            if (self._folder / name).exists():
                (self.local / name).write_bytes((self._folder / name).read_bytes())

    def upload(self) -> None:
        """Brings what has changed to the bucket; on disk it is there already."""
        if not self._remote:
            return
        for file in sorted(self.local.rglob("*")):
            if not file.is_file():
                continue
            name, status = file.relative_to(self.local).as_posix(), file.stat()
            version = (status.st_size, status.st_mtime_ns)
            if self._uploaded.get(name) != version:
                write_whole(self._folder / name, file.read_bytes())
                self._uploaded[name] = version


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One process at a time; the others wait, and say so once. A killed one holds up nobody.

    Args:
        file: that stands for what is locked, on disk; it is made, and stays.
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
