"""A made-up bucket gs://bucket in a folder, with an object store's manners."""

import io
import shutil
import sys
import types
from pathlib import Path

import fsspec
from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

NAME = "bucket"


class _Upload(io.BytesIO):
    """An object appears, whole, when its writer is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self._file = file

    def close(self):
        if not self.closed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(self.getvalue())
        super().close()


class _Store(fsspec.AbstractFileSystem):
    """Objects by name: no appending, and no folder that is empty."""

    cachable = False

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def _file(self, path):
        return self._folder / path.removeprefix("gs://").strip("/")

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://").rstrip("/")

    def info(self, path, **_):
        path, file = self._strip_protocol(path), self._file(path)
        if file.is_file():
            return {"name": path, "size": file.stat().st_size, "type": "file"}
        if any(f.is_file() for f in file.rglob("*")):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        if self.info(path)["type"] == "file":
            return [self.info(path)] if detail else [path]
        names = [f"{path}/{f.name}" for f in self._file(path).iterdir()]
        names = [name for name in names if self.exists(name)]
        return [self.info(name) for name in names] if detail else names

    def mkdir(self, path, **_):
        """A folder is there when something is in it."""

    makedirs = mkdir

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return io.BytesIO(self._file(path).read_bytes())
        if mode == "wb":
            return _Upload(self._file(path))
        raise NotImplementedError(f"an object cannot be opened with mode {mode}")

    def cp_file(self, path1, path2, **_):
        if self._file(path1).is_file():
            self._file(path2).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._file(path1), self._file(path2))

    def _rm(self, path):
        if self._file(path).is_file():
            self._file(path).unlink()


class _Backend(type(backend.fsspec_backend)):
    def __init__(self, folder: Path):
        self._store = _Store(folder)

    def fs(self, path):
        assert str(path).startswith("gs://"), path
        return self._store


def files(folder):
    """Every object below a folder."""
    for path in folder.iterdir():
        yield from files(path) if path.is_dir() else [path]


def mount(monkeypatch, folder: Path) -> str:
    """Has gs:// mean a folder, for etils and for Orbax, whose arrays TensorStore writes itself."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", _Backend(folder))
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", types.ModuleType("storage"))
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": f"{folder}/{path.removeprefix('gs://')}"},
    )
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    return f"gs://{NAME}"
