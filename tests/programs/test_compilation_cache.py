"""What a command compiles is there at its next start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax
from vqjax.programs import command_line

def main():
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    print(sum("cache_hits" in event for event in events), jax.config.jax_compilation_cache_max_size)

command_line.run(main)
"""


def start(home, **environment):
    """Hits in the cache, and its size, of a command that compiles one program."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=os.environ | own | {"XDG_CACHE_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return [int(number) for number in process.stdout.split()]


def kept(folder):
    return [file for file in folder.rglob("*-cache") if file.is_file()]


def test_second_start_compiles_nothing(tmp_path):
    assert start(tmp_path) == [0, 5 * 2**30]
    assert kept(tmp_path / "vqjax" / "compiled")
    assert start(tmp_path)[0] > 0


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_the_user_decides(name, tmp_path):
    own = tmp_path / "own"
    value = str(own) if name.endswith("DIR") else "0"
    start(tmp_path, **{name: value})
    assert not kept(tmp_path / "vqjax")
    assert bool(kept(own)) == name.endswith("DIR")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "vqjax").write_text("in the way")
    assert start(tmp_path) == [0, -1]
