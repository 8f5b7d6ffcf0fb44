"""Eight simulated devices, shapes checked at run time, and what test processes share."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import compiler_flags

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        compiler_flags.FAST,
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping

jaxtyping.install_import_hook("vqjax", "beartype.beartype")

CACHE = Path(tempfile.gettempdir()) / "vqjax-test-cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
# Also what compiles in no time, as it adds up.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

SHARED = "VQJAX_TEST_SHARED"


def pytest_configure(config):
    """Makes the folder that the processes of the tests share."""
    if not hasattr(config, "workerinput"):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="vqjax-test-shared-")


def pytest_unconfigure(config):
    """Removes it after the last test."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[SHARED], ignore_errors=True)


# Tracing makes many objects that live: by default a tenth of the time goes to looking for garbage.
gc.set_threshold(100_000, 50, 100)
