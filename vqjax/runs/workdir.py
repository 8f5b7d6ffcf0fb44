"""The folder of a run, on disk or in a bucket: its config, its classes, one folder a stage."""

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.files import open_path, write_whole

# Settings that do not change what is trained, so that a run may go on with other values.
FREE = re.compile(
    r"stages|profile|mesh\..*|sampling\..*|data\.workers"
    r"|\w+\.frechet\.weights|\w+\.(log_every|eval_every|eval_images|checkpoint_every|keep_checkpoints|use)"
)
# Settings of a model that do not change what it computes.
COMPUTE = re.compile(r".*\.(dtype|remat|implementation)")


def trained_stage(
    config: ConfigDict, workdir: epath.PathLike, stage: str
) -> tuple[epath.Path, ConfigDict]:
    """Where a stage's checkpoints are, here or in `init_from`, and the settings it is trained with.

    Raises:
        InputError: `init_from` is not the folder of a run, or its stage has another model.
    """
    source = config[stage].init_from
    if not source:
        return epath.Path(workdir) / stage, config[stage]
    theirs_workdir = open_path(source, f"config.{stage}.init_from")
    settings = read_config(theirs_workdir)[stage]
    if settings.init_from:
        raise InputError(
            f"config.{stage}.init_from={source}: that run took its {stage} from"
            f" {settings.init_from}; name that workdir"
        )
    theirs, ours = (json.loads(s.model.to_json()) for s in (settings, config[stage]))
    differing = _differences(theirs, ours, f"{stage}.model.", COMPUTE)
    if differing:
        raise InputError(
            f"config.{stage}.init_from={source}: its {stage} is another model:"
            f" {'; '.join(differing)}; set these as they were, or train one here"
        )
    settings.use = config[stage].use
    return theirs_workdir / stage, settings


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
    differing = _differences(before, json.loads(config.to_json()), "", FREE)
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
        return ConfigDict(json.loads(file.read_text()))
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


def write_class_names(workdir: epath.PathLike, names: Sequence[str]) -> None:
    """Stores the names of the classes, which sampling by class needs without the data."""
    write_whole(epath.Path(workdir) / "classes.json", json.dumps(list(names), indent=0) + "\n")


def read_class_names(workdir: epath.PathLike) -> tuple[str, ...]:
    """What `write_class_names` stored; empty where training has not begun."""
    file = epath.Path(workdir) / "classes.json"
    return tuple(json.loads(file.read_text())) if file.exists() else ()


def _differences(before: Any, now: Any, prefix: str, allowed: re.Pattern[str]) -> list[str]:
    """What is not the same in two trees of settings, leaving out the allowed keys."""
    before, now = _flat(before, prefix), _flat(now, prefix)
    return [
        f"{key} was {before.get(key, 'not set')}, is now {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not allowed.fullmatch(key)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
