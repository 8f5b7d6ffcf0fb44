"""Compiled programs, kept between the starts of a command."""

import os
from typing import Any

import jax
from etils import epath

from vqjax.files import cache_folder

_MAX_BYTES = 5 * 2**30


def keep_compiled_programs() -> None:
    """Has JAX keep what takes it a second or more to compile, in the user's cache folder.

    $JAX_COMPILATION_CACHE_DIR names another folder, $JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    Beyond 5 GiB, or $JAX_COMPILATION_CACHE_MAX_SIZE bytes, what was not used for longest goes.
    Where the folder cannot be written, nothing happens.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # JAX does so before it deletes anything: a KeyError where a container's user has no name.
        epath.Path(folder).stat()
    except (OSError, KeyError):
        return
    if not os.access(folder, os.W_OK):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_compilation_cache_max_size == -1:
        config.update("jax_compilation_cache_max_size", _MAX_BYTES)
