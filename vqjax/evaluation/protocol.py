"""The protocol of a number: everything that it depends on, written down beside it, and its hash."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_PACKAGES = ("vqjax", "jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "pillow")
_ROOT = Path(__file__).parent.parent


def environment(*modules: str) -> dict[str, Any]:
    """Versions of the packages, kind of device and, of given modules, the digest of their code.

    Args:
        modules: see `source_digest`; without any there is no digest.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    code = {"code": source_digest(*modules)} if modules else {}
    return {"versions": versions, **code, "device": jax.devices()[0].device_kind}


@functools.cache
def source_digest(*modules: str, root: Path = _ROOT) -> str:
    """Hex digest of the code of modules and of all that they import from the same package.

    Comments, docstrings and layout do not count: it is of the syntax trees. Another version of
    Python may have other trees, and so another digest.

    Args:
        modules: dotted names of the modules that a number is computed by; one from outside the
            package has been imported.
        root: folder of the package.

    Raises:
        ValueError: there is no such module.
    """
    content = hashlib.sha256()
    for name in imported_modules(*modules, root=root):
        content.update(f"{name} {ast.dump(_without_docstrings(_parse(root, name)))}\n".encode())
    return f"sha256 {content.hexdigest()}"


def imported_modules(*modules: str, root: Path = _ROOT) -> list[str]:
    """Names of modules and of all that they import from the same package, sorted.

    Read from the import statements, those inside functions too; nothing is executed. A name that is
    imported from a package leads to the module that the package's `__init__` has it from. A name
    that the `__init__` defines itself leads to the `__init__` alone, not to what that imports: it
    is a registry, which has all models, and the caller names the one that was chosen.

    Args:
        modules: dotted names to start from.
        root: folder of the package.

    Raises:
        ValueError: there is no such module.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if _file(root, name).name != "__init__.py":
                waiting += _imports(root, name)
    return sorted(found)


def _imports(root: Path, name: str) -> Iterator[str]:
    """Modules of the package that the import statements of a module lead to."""
    for node in ast.walk(_parse(root, name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == root.name:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            source = _source_of(root, name, node)
            if source.split(".")[0] == root.name:
                for alias in node.names:
                    yield _module_of(root, source, alias.name)


def _source_of(root: Path, name: str, node: ast.ImportFrom) -> str:
    """Absolute name of what a module imports from."""
    if not node.level:
        return node.module or ""
    # A package's `__init__` is in its own package.
    up = node.level - (_file(root, name).name == "__init__.py")
    package = name.rsplit(".", up)[0] if up else name
    return f"{package}.{node.module}" if node.module else package


def _module_of(root: Path, source: str, attribute: str) -> str:
    """The module that `from source import attribute` leads to."""
    if _exists(root, f"{source}.{attribute}"):
        return f"{source}.{attribute}"
    if _file(root, source).name == "__init__.py":
        for node in _parse(root, source).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if attribute == (alias.asname or alias.name):
                        return _module_of(root, _source_of(root, source, node), alias.name)
    return source


def _candidates(root: Path, name: str) -> tuple[Path, Path]:
    path = root.parent.joinpath(*name.split("."))
    return path.with_name(f"{path.name}.py"), path / "__init__.py"


def _exists(root: Path, name: str) -> bool:
    return any(file.is_file() for file in _candidates(root, name))


def _file(root: Path, name: str) -> Path:
    if name.split(".")[0] != root.name and name in sys.modules:
        # A model of somebody's own, registered from outside.
        return Path(str(sys.modules[name].__file__))
    for file in _candidates(root, name):
        if file.is_file():
            return file
    raise ValueError(f"there is no module {name} below {root.parent}")


def _parse(root: Path, name: str) -> ast.Module:
    return ast.parse(_file(root, name).read_bytes())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """A syntax tree from which strings that are statements of their own are taken."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
    return tree


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
