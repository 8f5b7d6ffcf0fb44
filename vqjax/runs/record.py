"""The record of a run, run.json: at every start, with what and on what it was started."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vqjax.errors import InputError
from vqjax.files import write_whole
from vqjax.runs.checkpoints import saved_steps

FILE = "run.json"
PACKAGES = ("vqjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def record_start(workdir: epath.PathLike) -> None:
    """Adds this start of a run to its run.json; on all processes but the main one does nothing.

    The file is {"starts": [...]}, the oldest first, each with `time` (UTC), `command`, `versions`,
    `git`, `devices`, `host`, and `from_step`: of each stage that has a checkpoint the newest step.

    Args:
        workdir: folder of the run.

    Raises:
        InputError: there is a run.json that is not such a file.
    """
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    starts = [*read_starts(workdir), _start(workdir)]
    write_whole(workdir / FILE, json.dumps({"starts": starts}, indent=2) + "\n")


def read_starts(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The starts of a run, the oldest first; none where it has not begun.

    Raises:
        InputError: there is a run.json that is not such a file.
    """
    file = epath.Path(workdir) / FILE
    if not file.exists():
        return []
    try:
        return list(json.loads(file.read_text())["starts"])
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{file} is not the record of a run ({type(e).__name__}: {e}): restore or delete it"
        ) from None


def _start(workdir: epath.Path) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    device = jax.devices()[0]
    return {
        "time": now.isoformat(timespec="seconds"),
        # The first is "vqjax train" where that is how it was called.
        "command": f"{sys.argv[0]} {shlex.join(sys.argv[1:])}".strip(),
        "from_step": {
            stage.name: steps[-1]
            for stage in sorted(workdir.iterdir() if workdir.is_dir() else ())
            if (steps := saved_steps(stage / "checkpoints"))
        },
        "versions": {"python": platform.python_version()} | _versions(),
        "git": git_state(Path(__file__).parents[2]),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "host": socket.gethostname(),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # vqjax itself, run from a checkout that is not installed.
            versions[name] = None
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a checkout, and whether files that git knows have changed; None if it is none.

    Args:
        folder: the top of the checkout; a folder further down in one does not count.
    """
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != folder.resolve():
            return None
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, check=True, text=True, timeout=30
    )
    return done.stdout.strip()
