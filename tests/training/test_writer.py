"""What a stage's writer leaves in its folder."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from vqjax.training.writer import Writer


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """Every TensorBoard event of the folder: length, checksum, Event, checksum, ..."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        contents = file.read_bytes()
        while contents:
            (length,) = struct.unpack("<Q", contents[:8])
            yield Event.FromString(contents[12 : 12 + length])
            contents = contents[12 + length + 4 :]


def test_scalars_go_to_json_lines_and_tensorboard(tmp_path):
    with Writer(tmp_path / "tokenizer") as writer:
        writer.scalars(1, {"loss": jnp.float32(0.5), "accuracy": 0.25})
        # Readable at once, not only after closing.
        assert metrics(tmp_path / "tokenizer") == [{"step": 1, "loss": 0.5, "accuracy": 0.25}]
        writer.scalars(2, {"loss": np.float32(0.25)})
    points = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tokenizer")
        for value in event.summary.value
    ]
    assert points == [(1, "loss", 0.5), (1, "accuracy", 0.25), (2, "loss", 0.25)]


def test_values_that_are_not_finite_are_null(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"loss": jnp.nan, "scale": jnp.inf, "rate": 1.0})
    assert metrics(tmp_path) == [{"step": 1, "loss": None, "scale": None, "rate": 1.0}]


def test_resumed_run_has_every_step_once(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # Killed in the middle of a line.
    with Writer(tmp_path, start_step=20) as writer:
        writer.scalars(30, {"loss": 31.0})
    assert metrics(tmp_path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 31.0},
    ]
    # TensorBoard drops what is at a restart's step or later.
    restarts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert restarts[-1] == 21
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_run_that_starts_over_has_nothing_of_the_first_one(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(0, {"loss": 1.0})
    with Writer(tmp_path) as writer:
        writer.scalars(0, {"loss": 2.0})
    assert metrics(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_picture_is_a_png_and_a_tensorboard_image(tmp_path):
    grid = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with Writer(tmp_path) as writer:
        writer.images(123, "reconstructions", grid)
    files = list((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["reconstructions_0000123.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), grid)
    (image,) = [value for event in events(tmp_path) for value in event.summary.value]
    assert (image.tag, image.image.width, image.image.height) == ("reconstructions", 30, 20)


def test_other_processes_write_nothing(tmp_path):
    folder = tmp_path / "prior"
    with Writer(folder, is_main_process=False) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, "samples", np.zeros((4, 4, 3), np.uint8))
        writer.flush()
    assert not folder.exists()


@pytest.mark.parametrize("line", ["3", "{}", "text"])
def test_foreign_lines_of_the_metrics_file_do_not_stop_a_run(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 1, "loss": 1.0}}\n')
    Writer(tmp_path, start_step=5).close()
    assert metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
