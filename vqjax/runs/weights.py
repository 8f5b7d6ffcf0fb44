"""Trained weights of a run, for what only uses them: later stages, sampling, evaluation."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vqjax.parallel import placed
from vqjax.priors.base import Prior, init_prior
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.stages import (
    TrainedStage,
    check_trained,
    decoder_of,
    tokenizer_of,
    trained_stage,
    untrained,
)
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokenizer_shapes

log = logging.getLogger(__name__)

Variables = dict[str, Any]


@functools.lru_cache(maxsize=32)
def prior_shapes(prior: Prior, tokens: int, length: int) -> Variables:
    """Shapes of a prior's variables, by the tokens of an image and the length of its condition."""
    return jax.eval_shape(lambda key: init_prior(prior, tokens, length, key), jax.random.key(0))


def split_decoder(
    tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], Variables]:
    """The parameters that only `decode` reads, and all variables without them."""
    parts = tokenizer.decoder_parts
    params = variables["params"]
    decoder = {name: params[name] for name in parts}
    rest = {name: value for name, value in params.items() if name not in parts}
    return decoder, {**variables, "params": rest}


def load_tokenizer(
    config: ConfigDict, workdir: epath.Path, stage: str, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[Variables, dict[str, int]]:
    """The variables of the model that `build_stage_tokenizer` gives, and by stage of which step.

    Raises:
        InputError: a stage has no checkpoint, or it is of another model.
    """
    shapes = placed(tokenizer_shapes(tokenizer, config.data.resolution), mesh)
    codes, decoder = tokenizer_of(config, stage), decoder_of(config, stage)
    if codes == decoder:
        variables, step = load_weights(trained_stage(config, workdir, codes), shapes)
        return variables, {codes: step}
    wanted, frozen = split_decoder(tokenizer, shapes)
    kept, kept_step = load_weights(trained_stage(config, workdir, codes), frozen)
    own, step = load_weights(trained_stage(config, workdir, decoder), {"params": wanted})
    params = {**kept["params"], **own["params"]}
    return {**kept, "params": params}, {codes: kept_step, decoder: step}


def load_weights(stage: TrainedStage, shapes: Variables) -> tuple[Variables, int]:
    """A trained model's variables, and the step that they are of.

    Args:
        stage: whose settings say whether the moving average of the weights was kept, how long it
            trains, and whether the "last" or the "best" checkpoint is used.
        shapes: of the variables, {"params": ..., **collections}, with shardings where they are to
            be placed; others that the checkpoint has are not read.

    Raises:
        InputError: there is no checkpoint, or it is of another model.
    """
    folder, settings = stage.folder, stage.settings
    checkpointer, weights = _open(stage)
    wanted = {key: value for key, value in shapes.items() if key != "params"}
    found = checkpointer.restore_partial(
        {"model": {weights: shapes["params"], "model_state": wanted}}, which=settings.use
    )
    checkpointer.close()
    if found is None:
        raise untrained(stage)
    last = checkpointer.latest_step
    if last is not None and last < settings.steps:
        log.warning(
            "%s is at step %d of %d: its training is not finished", folder, last, settings.steps
        )
    network, step = found[0]["model"], found[1]
    log.info("%s: weights of step %d (%s, %s)", stage.name, step, settings.use, weights)
    return {"params": network[weights], **network["model_state"]}, step


def saved_variables(stage: TrainedStage) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all variables that `load_weights` may be asked for, by path ("params/...").

    Raises:
        InputError: there is no checkpoint.
    """
    checkpointer, weights = _open(stage)
    saved = checkpointer.saved_shapes(stage.settings.use)
    checkpointer.close()
    if saved is None:
        raise untrained(stage)
    names = {f"model/{weights}/": "params/", "model/model_state/": ""}
    return {
        name + path.removeprefix(prefix): leaf
        for prefix, name in names.items()
        for path, leaf in saved.items()
        if path.startswith(prefix)
    }


def _open(stage: TrainedStage) -> tuple[Checkpointer, str]:
    """A stage's checkpoints, and which of its weights are used: "ema" or "params"."""
    check_trained(stage)
    settings = stage.settings
    checkpointer = Checkpointer(
        stage.folder / "checkpoints",
        best_metric=settings.best_metric or None,
        best_mode=settings.best_mode,
        read_only=True,
    )
    return checkpointer, "ema" if settings.ema_decay else "params"
