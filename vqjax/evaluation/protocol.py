"""What a number depends on, written down beside it, and the hash that stands for it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_PACKAGES = ("vqjax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


def surroundings() -> dict[str, Any]:
    """Versions of the packages, and the kind of device: other ones may change the last digits."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"versions": versions, "device": jax.devices()[0].device_kind}


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
