"""The folder of a run, on disk or in a bucket: its config, its condition, one folder a stage."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vqjax.conditions import Condition, NoCondition, from_json, to_json
from vqjax.errors import InputError
from vqjax.files import write_whole

# Settings that do not change what is trained, so that a run may go on with other values.
FREE = re.compile(
    r"stages|profile|mesh\..*|sampling\..*|data\.workers"
    r"|\w+\.frechet\.weights|\w+\.data\.(in_memory|tokens)"
    r"|\w+\.(log_every|eval_every|eval_images|checkpoint_every|keep_checkpoints|use)"
)
# Settings of a model that do not change what it computes.
COMPUTE = re.compile(r".*\.(dtype|remat|implementation)")


def check_workdir(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Checks that a folder which is there was made with this config.

    Raises:
        InputError: it was not (what differs is listed), or its config cannot be read; it is a file.
    """
    workdir = epath.Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir}: this is a file, a folder is needed")
    if not (workdir / "config.json").exists():
        return
    before = json.loads(read_config(workdir).to_json())
    differing = differences(before, json.loads(config.to_json()), "", FREE)
    if differing:
        raise InputError(
            f"{workdir} was made with another config: {'; '.join(differing)}."
            " Give another --workdir, or --accept_config_changes to go on with the new config"
        )


def write_config(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Stores the config of a run in its folder, which is made."""
    write_whole(epath.Path(workdir) / "config.json", config.to_json(indent=2) + "\n")


def read_config(workdir: epath.PathLike) -> ConfigDict:
    """The config that a workdir was made with.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    workdir = epath.Path(workdir)
    file = workdir / "config.json"
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        beside = workdir.parent.iterdir() if workdir.parent.is_dir() else ()
        near = difflib.get_close_matches(workdir.name, [d.name for d in beside if d.is_dir()], n=1)
        hint = f" (there is {workdir.parent / near[0]})" if near and near[0] != workdir.name else ""
        raise InputError(
            f"{workdir} is not the folder of a run: it has no config.json{hint};"
            " give the --workdir that train.py was given"
        ) from None
    except json.JSONDecodeError as e:
        raise InputError(
            f"{file} is not valid JSON ({e}): restore it, or train in another --workdir"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a config: restore it, or train in another --workdir")
    return ConfigDict(content)


def write_condition(workdir: epath.PathLike, condition: Condition) -> None:
    """Stores the condition of a run, which sampling needs without the data."""
    content = json.dumps(to_json(condition), indent=0)
    write_whole(epath.Path(workdir) / "condition.json", content + "\n")


def read_condition(workdir: epath.PathLike) -> Condition:
    """The condition that `write_condition` stored; none for a run whose config has none.

    Raises:
        InputError: the config names one and the file is not there, or not that of a condition.
    """
    workdir = epath.Path(workdir)
    file, name = workdir / "condition.json", read_config(workdir).condition.name
    try:
        return from_json(json.loads(file.read_text()))
    except FileNotFoundError:
        if name == "none":
            return NoCondition()
        raise InputError(
            f"{file} is not there, but the run's condition is {name!r}, which its prior needs:"
            " train.py with the run's config and data writes it again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"{file} is not that of a condition ({type(e).__name__}: {e}): delete it, and train.py"
            " with the run's config and data writes it again"
        ) from None


def check_condition(condition: Condition, workdir: epath.PathLike) -> None:
    """Checks that a folder which holds a condition was made with this one.

    Raises:
        InputError: it was not (what differs is listed), or its condition cannot be read.
    """
    workdir = epath.Path(workdir)
    if not (workdir / "condition.json").exists():
        return
    before, now = (_by_index(to_json(c)) for c in (read_condition(workdir), condition))
    differing = differences(before, now, "condition.")
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{workdir} was made with another condition: {'; '.join(differing[:3])}{more}. Bring"
            " the data back to what it was, give another --workdir, or --accept_config_changes to"
            " go on with the new condition"
        )


def _by_index(tree: Any) -> Any:
    """A tree in which the items of a list are keyed by their place in it."""
    if isinstance(tree, list | tuple):
        tree = {str(place): item for place, item in enumerate(tree)}
    return {key: _by_index(x) for key, x in tree.items()} if isinstance(tree, dict) else tree


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    prefix: str,
    allowed: re.Pattern[str] | None = None,
) -> list[str]:
    """Settings that differ between two trees of them, in words, but for allowed keys."""
    before, now = (flatten_dict(tree, sep=".") for tree in (before, now))
    return [
        f"{prefix}{key} was {before.get(key, 'not set')}, is now {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not (allowed and allowed.fullmatch(f"{prefix}{key}"))
    ]
