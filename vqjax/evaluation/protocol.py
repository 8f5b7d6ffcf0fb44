"""What a number depends on, written down beside it, and the hash that stands for it."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_PACKAGES = ("vqjax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")
_ROOT = Path(__file__).parent.parent
# Modules that change no number.
_SHOWING = ("report.py", "reporting", "locality.py")


def surroundings(*parts: str) -> dict[str, Any]:
    """Versions of the packages, and the kind of device: other ones may change the last digits.

    Args:
        parts: modules and packages of vqjax whose code matters [all that make numbers].
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0].device_kind
    return {"versions": versions, "code": source_digest(*parts), "device": device}


@functools.cache
def source_digest(*parts: str) -> str:
    """Hex digest of the source of vqjax: a version stands for many states of a checkout.

    Args:
        parts: modules and packages of vqjax [all that make numbers].
    """
    content = hashlib.sha256()
    for file in sorted(_ROOT.rglob("*.py")):
        name = file.relative_to(_ROOT).as_posix()
        top = name.split("/")[0]
        if top in parts or (not parts and top not in _SHOWING):
            source = file.read_bytes()
            content.update(f"{name} {len(source)}\n".encode() + source)
    return f"sha256 {content.hexdigest()}"


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Hex digest of a protocol; the order of its keys does not matter.

    Args:
        protocol: nested dicts and lists of what JSON can hold.
    """
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def digest(tree: Any) -> str:
    """Hex digest of all arrays of a tree with their paths, shapes and types."""
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        content.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        content.update(array.tobytes())
    return f"sha256 {content.hexdigest()}"
