"""What a run was made with."""

import datetime
import importlib.metadata
import subprocess
import sys

import bucket
import jax
import numpy as np
import pytest
from etils import epath

from vqjax.errors import InputError
from vqjax.runs.checkpoints import Checkpointer, saved_steps
from vqjax.runs.record import git_state, read_starts, record_start

PACKAGES = ("vqjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def save(workdir, stage, *steps):
    checkpointer = Checkpointer(epath.Path(workdir) / stage / "checkpoints")
    for step in steps:
        checkpointer.save(step, {"a": np.arange(3.0)})
    checkpointer.close()


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return epath.Path(tmp_path) / "run"
    return epath.Path(bucket.mount(monkeypatch, tmp_path)) / "run"


def test_every_start_is_kept(workdir, monkeypatch):
    assert read_starts(workdir) == []
    monkeypatch.setattr(sys, "argv", ["vqjax train", "--workdir=a b"])
    record_start(workdir)
    first = read_starts(workdir)
    save(workdir, "tokenizer", 3, 12)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    record_start(workdir)
    starts = read_starts(workdir)
    assert starts[:-1] == first and len(starts) == 2
    assert [start["command"] for start in starts] == ["vqjax train '--workdir=a b'", "train.py"]
    assert [start["from_step"] for start in starts] == [{}, {"tokenizer": 12}]

    start = starts[-1]
    made = datetime.datetime.fromisoformat(start["time"])
    assert made.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - made).total_seconds() < 60
    assert tuple(start["versions"]) == ("python", *PACKAGES)
    assert start["versions"]["jax"] == jax.__version__
    assert start["devices"] == {
        "platform": "cpu",
        "kind": jax.devices()[0].device_kind,
        "count": 8,
        "processes": 1,
    }
    assert start["host"]


def test_only_the_main_process_writes(workdir, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record_start(workdir)
    assert not workdir.exists()


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    def version(name):
        if name == "vqjax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    record_start(tmp_path)
    versions = read_starts(tmp_path)[0]["versions"]
    assert versions["vqjax"] is None and versions["jax"] == "1"


def test_git(tmp_path, monkeypatch):
    def git(*command):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *command], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    (tmp_path / "untracked").write_text("")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == state | {"dirty": True}
    # Installed below somebody else's checkout.
    (tmp_path / "venv").mkdir()
    assert git_state(tmp_path / "venv") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"starts": null}'])
def test_a_file_that_is_no_record(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
        record_start(tmp_path)
    assert (tmp_path / "run.json").read_text() == text


def test_saved_steps(workdir):
    folder = workdir / "tokenizer" / "checkpoints"
    assert saved_steps(folder) == []
    save(workdir, "tokenizer", 3, 12)
    (folder / "damaged_20").mkdir()
    (folder / "damaged_20" / "x").write_text("")
    assert saved_steps(folder) == [3, 12]
    if "://" in str(workdir):
        # Killed while it was saved.
        (folder / "15" / "state" / "x").write_text("")
        assert saved_steps(folder) == [3, 12]
