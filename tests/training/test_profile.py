"""A profile of a few steps."""

import bucket
import jax
import jax.numpy as jnp
import pytest
from etils import epath

from vqjax.errors import InputError
from vqjax.training.profile import Profiler, parse_steps


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return epath.Path(tmp_path) / "profile"
    return epath.Path(bucket.mount(monkeypatch, tmp_path)) / "profile"


def traces(folder):
    """As xprof looks for them."""
    runs = folder / "plugins" / "profile"
    if not runs.is_dir():
        return []
    return [f for run in runs.iterdir() for f in run.iterdir() if f.name.endswith(".xplane.pb")]


def run(text, folder, steps, **options):
    """How many traces there are after each step."""

    @jax.jit
    def train_step(x):
        return jnp.sin(x) @ x

    x, counts = jnp.eye(8), []
    with Profiler(text, folder, **options) as profiler:
        for step in steps:
            with profiler.step(step, x):
                x = train_step(x)
            counts.append(len(traces(folder)))
    return [*counts, len(traces(folder))]


def test_steps_are_traced(folder):
    assert run("3:5", folder, range(1, 8)) == [0, 0, 0, 0, 1, 1, 1, 1]
    (trace,) = traces(folder)
    data = jax.profiler.ProfileData.from_serialized_xspace(trace.read_bytes())
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    numbers = {
        value
        for event in events
        if event.name == "train"
        for key, value in event.stats
        if key == "step_num"
    }
    assert numbers == {3, 4}
    assert any("train_step" in event.name for event in events)


def test_a_run_that_ends_or_goes_on_within_the_steps(folder):
    assert run("3:5", folder, [4, 5, 6]) == [0, 1, 1, 1]
    assert run("3:5", folder / "ends", [1, 2, 3]) == [0, 0, 0, 1]
    assert run("3:5", folder / "past", [7, 8]) == [0, 0, 0]


def test_nothing_without_steps_or_on_other_processes(folder):
    assert run("", folder, range(1, 4)) == [0] * 4
    assert run("1:3", folder, range(1, 4), is_main_process=False) == [0] * 4
    assert not folder.exists()


def test_steps():
    assert list(parse_steps("10:13")) == [10, 11, 12]
    assert not parse_steps("")


@pytest.mark.parametrize("text", ["10", "5:5", "6:5", "0:3", "-1:3", "a:b", "1:2:3", " 1:2", ":"])
def test_no_steps(text):
    with pytest.raises(InputError, match=f"config.profile={text}: START:STOP is needed"):
        parse_steps(text)
