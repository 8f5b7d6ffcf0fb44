"""The commands as a user runs them: in this process, or as processes of their own."""

import atexit
import contextlib
import functools
import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import compiler_flags
import jax
import tiny
from absl import flags

from vqjax.programs import command_line

ROOT = Path(__file__).parent.parent
STEPS = 40
# Without its usual eps Adam makes whole steps of what is only rounding: in a gradient that is 0
# (the bias of attention keys), two ways of adding up differ in sign.
FLAGS = (
    "--config.tokenizer.discriminator.optimizer.eps=1e-3",
    # One phase, and so one program to compile.
    "--config.tokenizer.discriminator.start=0",
    *(
        f"--config.{name}.{setting}"
        for name in ("tokenizer", "prior")
        for setting in ("optimizer.eps=1e-3", "eval_every=20", "checkpoint_every=7")
    ),
)


def start(images: Path, workdir: Path, devices: int, *args: str) -> subprocess.Popen[str]:
    """Starts train.py with so many simulated devices."""
    config = f"--config=tests/tiny.py:path={images},steps={STEPS}"
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {compiler_flags.FAST}",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    return subprocess.Popen(
        [sys.executable, "train.py", config, f"--workdir={workdir}", *FLAGS, *args],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a program that has to succeed; what it said."""
    try:
        said = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


@functools.cache
def unbroken_run() -> tuple[Path, Path]:
    """Images, and the workdir of a run on four devices that nothing stopped; once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="vqjax-test-program-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    images = tiny.write_images(folder / "images")
    finish(start(images, folder / "run", 4))
    return images, folder / "run"


def call(name: str, *args: str) -> int:
    """Runs a command in this process; its exit status."""
    with _flags_of(name) as module, mock.patch.object(sys, "argv", [f"{name}.py", *args]):
        log = logging.getLogger("vqjax")
        try:
            command_line.run(module.main)
        except SystemExit as e:
            return e.code or 0
        finally:
            for handler in log.handlers[:]:
                log.removeHandler(handler)
                handler.close()
            log.propagate = True
    raise AssertionError("a program ends with SystemExit")


@contextlib.contextmanager
def _flags_of(name: str) -> Iterator[object]:
    """Both programs have a flag --workdir, so that only one's flags can be defined at a time."""
    module, own = _load(name)
    before = set(flags.FLAGS)
    for key, flag in own.items():
        flags.FLAGS[key] = flag
    flags.FLAGS.unparse_flags()
    try:
        yield module
    finally:
        for key in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, key)
        flags.FLAGS.mark_as_parsed()


@functools.cache
def _load(name: str) -> tuple[object, dict[str, flags.Flag]]:
    before = set(flags.FLAGS)
    module = importlib.import_module(f"vqjax.programs.{name}")
    own = {key: flags.FLAGS[key] for key in set(flags.FLAGS) - before}
    for key in own:
        delattr(flags.FLAGS, key)
    return module, own
