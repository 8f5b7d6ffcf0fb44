"""A run in a bucket is the run that it would be on disk."""

import json
import os
import signal
import sys

import bucket
import command_runs
import jax
import numpy as np
import pytest
import tiny
import tiny_network
from etils import epath

import vqjax
from vqjax.errors import InputError, TrainingError
from vqjax.evaluation.results import read_results
from vqjax.files import (
    StagedFolder,
    absolute,
    is_remote,
    open_path,
    replacing,
    write_png,
    write_whole,
)
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.workdir import check_workdir, read_condition, read_config
from vqjax.training.console import ProgressBar, close_logging, setup_logging
from vqjax.training.writer import Writer


@pytest.fixture
def url(tmp_path, monkeypatch):
    """gs://bucket; whatever happens, no folder of that name comes to be."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield bucket.mount(monkeypatch, tmp_path / "store")
    assert not list((tmp_path / "here").iterdir())


def interrupt_at(monkeypatch, wanted):
    def update(self, step, loss=None):
        if step == wanted:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressBar, "update", update)


def logged_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


@pytest.mark.slow
def test_trained_stopped_resumed_and_sampled(url, tmp_path, monkeypatch):
    run = tiny.finished_run()
    workdir = open_path(f"{url}/runs/a b", "--workdir")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(TrainingError, match="step 5 is saved in gs://bucket/runs/a b"):
            tiny.train(run.config, "tokenizer", workdir)
    assert tiny.final_state(run.config, "tokenizer", workdir).step == 5
    for name in ("tokenizer", "prior"):
        tiny.train(run.config, name, workdir)
        ours, theirs = (tiny.final_state(run.config, name, w) for w in (workdir, run.workdir))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert logged_steps(workdir / name) == logged_steps(run.workdir / name)
        parameters = (folder / name / "parameters.txt" for folder in (workdir, run.workdir))
        assert len({file.read_text() for file in parameters}) == 1
        pictures, theirs = (
            {f.name: f.read_bytes() for f in (folder / name / "pictures").iterdir()}
            for folder in (workdir, run.workdir)
        )
        assert pictures == theirs
        steps = {f.name for f in (workdir / name / "checkpoints").iterdir()}
        assert steps == {f.name for f in (run.workdir / name / "checkpoints").iterdir()}
        assert any(f.name.startswith("events.out") for f in (workdir / name).iterdir())
    check_workdir(run.config, workdir)
    assert read_config(workdir).to_json() == run.config.to_json()
    assert read_condition(workdir) == tiny.CONDITION

    assert command_runs.call("sample", f"--workdir={workdir}", "--num_images=3") == 0
    assert command_runs.call("sample", f"--workdir={run.workdir}", "--num_images=3") == 0
    names = {"00000.png", "00001.png", "00002.png", "grid.png", "settings.json"}
    assert {f.name for f in (workdir / "samples").iterdir()} == names
    for name in names:
        ours, theirs = (folder / "samples" / name for folder in (workdir, run.workdir))
        assert ours.read_bytes() == theirs.read_bytes()
    assert "3 images and grid.png" in (workdir / "log.txt").read_text()
    read_back(workdir, tmp_path, monkeypatch)


def read_back(workdir, tmp_path, monkeypatch):
    """What only reads a run: its evaluation and its report, from the bucket and in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for command in ("report", "evaluate"):
        module = command_runs._load(command)[0]
        monkeypatch.setattr(module, "build_network", tiny_network.build)
    given = [f"--workdir={workdir}", "--what=reconstruction", "--batch_size=8", "--bootstrap=0"]
    assert command_runs.call("evaluate", *given) == 0
    found = read_results(workdir / "evaluation")["reconstruction"]
    assert {f.name for f in (workdir / "evaluation").iterdir()} == {"metrics.json", "metrics.txt"}
    # What is known of each image needs a disk.
    (folder,) = (tmp_path / "cache" / "vqjax" / "evaluation").iterdir()
    assert len(list(folder.glob("reconstruction-*/features.npy"))) == 1

    few = ["--samples=3", "--neighbours=2", "--neighbours_from=8", "--held_out=4"]
    assert command_runs.call("report", f"--workdir={workdir}", *few) == 0
    page = (workdir / "report.html").read_text()
    assert "<title>a b" in page and "there is no" not in page
    assert f'value="{found["metrics"]["PSNR"]}"' in page

    assert command_runs.call("evaluate", *given, f"--out={tmp_path / 'out'}") == 0
    again = read_results(tmp_path / "out")["reconstruction"]
    assert again["protocol_sha256"] == found["protocol_sha256"]
    assert list((tmp_path / "out").glob("reconstruction-*"))
    assert vqjax.load(workdir, tiny.one_device()).config.to_json() == read_config(workdir).to_json()


def test_damaged_checkpoint(url, caplog):
    state = {"a": np.arange(1000, dtype="float32")}
    checkpointer = Checkpointer(f"{url}/run", keep=2)
    for step in (1, 2):
        checkpointer.save(step, state)
    checkpointer.wait()
    for file in bucket.files(epath.Path(f"{url}/run/2/state")):
        file.write_bytes(b"")
    shapes = jax.eval_shape(lambda: state)
    assert checkpointer.restore(shapes)[1] == 1
    checkpointer.close()
    assert "the damaged one is now damaged_2" in caplog.text
    assert epath.Path(f"{url}/run/damaged_2").exists()


def test_exports_are_on_a_disk(url, capsys):
    given = ["--images=x", "--reference=y", f"--export_reference={url}/a.npz"]
    assert command_runs.call("evaluate", *given) == 2
    assert f"{url}/a.npz: a path of this machine is needed" in capsys.readouterr().err


def test_log_and_metrics_are_whole_at_the_end(url, monkeypatch):
    """An object cannot be appended to: the log is uploaded now and then, and when it is closed."""
    clock = [100.0]
    monkeypatch.setattr("vqjax.training.console.time.monotonic", lambda: clock[0])
    log_file = epath.Path(f"{url}/run/log.txt")

    def said():
        return [line.split("INFO ")[1] for line in log_file.read_text().splitlines()]

    for run in ("first", "second"):
        log = setup_logging(f"{url}/run")
        log.info("%s a", run)
        log.info("%s b", run)
        clock[0] += 60
        log.info("%s c", run)
        assert said()[-1] == f"{run} c"
        log.info("%s d", run)
        assert said()[-1] == f"{run} c"
        close_logging()
    assert said() == [f"{run} {x}" for run in ("first", "second") for x in "abcd"]


def test_metrics_and_events_arrive_with_a_flush(url):
    folder = epath.Path(f"{url}/run/tokenizer")
    writer = Writer(folder)
    writer.scalars(1, {"loss": 0.5})
    writer.flush()
    assert json.loads((folder / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    (events,) = (f for f in folder.iterdir() if f.name.startswith("events.out"))
    before = len(events.read_bytes())
    writer.scalars(2, {"loss": 0.25})
    writer.close()
    assert logged_steps(folder) == [1, 2] and len(events.read_bytes()) > before
    Writer(folder, start_step=1).close()
    assert logged_steps(folder) == [1]


def test_staged_folder_uploads_what_has_changed(url, monkeypatch):
    staged = StagedFolder(f"{url}/run")
    (staged.local / "deep").mkdir()
    (staged.local / "a").write_text("1")
    (staged.local / "deep" / "b").write_text("1")
    staged.upload()
    epath.Path(f"{url}/run/deep/b").write_text("theirs")
    (staged.local / "a").write_text("12")
    staged.upload()
    assert epath.Path(f"{url}/run/a").read_text() == "12"
    assert epath.Path(f"{url}/run/deep/b").read_text() == "theirs"
    again = StagedFolder(f"{url}/run", resumed=["a", "missing"])
    assert [f.name for f in again.local.iterdir()] == ["a"]
    with (again.local / "a").open("a") as file:
        file.write("3")
    again.upload()
    assert epath.Path(f"{url}/run/a").read_text() == "123"


def test_whole_files(url):
    file = epath.Path(f"{url}/run/a.txt")
    write_whole(file, "ünd")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("sec")
        raise KeyboardInterrupt
    assert file.read_bytes() == "ünd".encode()
    with replacing(file) as partial:
        partial.write_text("second")
    assert file.read_text() == "second"
    write_png(f"{url}/run/a.png", np.zeros((2, 3, 3), np.uint8))
    assert epath.Path(f"{url}/run/a.png").read_bytes().startswith(b"\x89PNG")
    assert {f.name for f in file.parent.iterdir()} == {"a.txt", "a.png"}


def test_a_bucket_that_cannot_be_used(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    backend = type(bucket.gpath._PREFIX_TO_BACKEND["gs"])()
    monkeypatch.setitem(bucket.gpath._PREFIX_TO_BACKEND, "gs", backend)
    with pytest.raises(InputError, match="workdir=gs://bucket/run: a bucket needs a package"):
        vqjax.load("gs://bucket/run")
    for command in ("sample", "report", "locality", "evaluate"):
        assert command_runs.call(command, "--workdir=gs://bucket/run") == 2
        expected = "error: --workdir=gs://bucket/run: a bucket needs a package: pip install gcsfs"
        assert capsys.readouterr().err.splitlines()[-1] == expected

    bucket.mount(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(InputError, match="pip install gcsfs"):
        open_path("gs://bucket/run", "--workdir")

    monkeypatch.setitem(bucket.gpath._PREFIX_TO_BACKEND, "gs", backend)
    monkeypatch.setattr(backend, "exists", lambda path: 1 / 0)
    with pytest.raises(InputError, match=r"--out=gs://b/x: .* \(ZeroDivisionError: .*credentials"):
        open_path("gs://b/x", "--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["s3://bucket/run", "file:///x", "gs://", "gs:///x", "gs:/b/x"])
def test_other_urls_are_refused(text):
    with pytest.raises(InputError, match=f"workdir={text}: a local path or gs://bucket/folder"):
        vqjax.load(text)


@pytest.mark.parametrize(
    "name",
    ["a b", "[x]*?", "100%#1", "größe", "-x", "gs", "x:y", "~", "run~", "{a}", "a'b\"c"],
)
def test_local_paths_are_exact(name, tmp_path, monkeypatch):
    """As pathlib has them, relative and absolute, also for Orbax."""
    monkeypatch.chdir(tmp_path)
    workdir = open_path(name, "--workdir")
    assert os.fspath(workdir) == name and not is_remote(workdir)
    write_whole(workdir / "config.json", '{"a": 1}')
    assert (tmp_path / name / "config.json").read_text() == '{"a": 1}'
    assert read_config(workdir).a == 1
    assert os.fspath(absolute(workdir)) == os.fspath(open_path(f"{tmp_path}/{name}", "--workdir"))
    checkpointer = Checkpointer(workdir / "checkpoints")
    checkpointer.save(3, {"a": np.arange(3, dtype="float32")})
    checkpointer.close()
    assert (tmp_path / name / "checkpoints" / "3" / "state").is_dir()
    assert [f.name for f in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["/gs/run", "gs/run", "./gs/run"])
def test_folders_that_etils_takes_for_buckets(text, monkeypatch):
    """A file system may be mounted at /gs."""
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    workdir = open_path(text, "--workdir")
    assert not is_remote(absolute(workdir / "x"))
    assert os.path.realpath(os.fspath(absolute(workdir))) == "/gs/run"
