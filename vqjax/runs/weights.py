"""Trained weights of a stage, for what only uses them: later stages, sampling."""

import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.runs.checkpoints import Checkpointer

log = logging.getLogger(__name__)


def load_weights(folder: epath.Path, config: ConfigDict, shapes: Any) -> tuple[Any, int]:
    """A trained model's variables, and the step that they are of.

    Args:
        folder: of the stage.
        config: of the stage: whether its weights' moving average was kept, how long it trains, and
            whether the "last" or the "best" checkpoint is used.
        shapes: of the variables, {"params": ..., **collections}, with shardings where they are to
            be placed.

    Raises:
        InputError: there is no checkpoint, or it is of another model.
    """
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        raise InputError(_missing(folder))
    checkpointer = Checkpointer(
        checkpoints,
        best_metric=config.best_metric or None,
        best_mode=config.best_mode,
        read_only=True,
    )
    weights = "ema" if config.ema_decay else "params"
    wanted = {key: value for key, value in shapes.items() if key != "params"}
    found = checkpointer.restore_partial(
        {"generator": {weights: shapes["params"], "model_state": wanted}}, which=config.use
    )
    checkpointer.close()
    if found is None:
        raise InputError(_missing(folder))
    last = checkpointer.latest_step
    if last is not None and last < config.steps:
        log.warning(
            "%s is at step %d of %d: its training is not finished", folder, last, config.steps
        )
    player = found[0]["generator"]
    log.info("%s: weights of step %d (%s, %s)", folder.name, found[1], config.use, weights)
    return {"params": player[weights], **player["model_state"]}, found[1]


def _missing(folder: epath.Path) -> str:
    return (
        f"there is no trained {folder.name} in {folder.parent}: run train.py until that stage is"
        f" finished, or name a workdir that has one by --config.{folder.name}.init_from"
    )
