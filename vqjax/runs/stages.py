"""The stages of a run: their kinds, their order, and where the weights of each are.

A stage is a sub-config with a `kind`:

- "tokenizer" trains encoder, codebook and decoder;
- "decoder" trains a decoder anew on the codes of `<stage>.tokenizer`, which does not move;
- "prior" trains a distribution over the codes of `<stage>.tokenizer`.
"""

import dataclasses
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.files import open_path
from vqjax.registry import did_you_mean
from vqjax.runs.workdir import COMPUTE, differences, read_config

KINDS = ("tokenizer", "decoder", "prior")


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """The place of a stage's weights.

    Attributes:
        name: of the stage.
        folder: with its checkpoints.
        config: the settings that it is trained with.
    """

    name: str
    folder: epath.Path
    config: ConfigDict


def all_stages(config: ConfigDict) -> list[str]:
    """Names of the stages that a config describes: tokenizers, then decoders, then priors."""
    names = [
        name for name in config if isinstance(config[name], ConfigDict) and "kind" in config[name]
    ]
    for name in names:
        kind = config[name].kind
        if kind not in KINDS:
            raise InputError(f"config.{name}.kind={kind!r}: {did_you_mean(str(kind), KINDS)}")
    return sorted(names, key=lambda name: (KINDS.index(config[name].kind), name))


def stages_to_train(config: ConfigDict) -> list[str]:
    """The stages that are to be trained, in order; on the command line, --config.stages=a,b.

    Raises:
        InputError: unknown stage.
    """
    known = all_stages(config)
    names = [name for item in config.stages for name in item.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"config.stages has {name!r}: {did_you_mean(name, known)}")
    return names


def stages_of(config: ConfigDict, *kinds: str) -> list[str]:
    """Names of the stages of some kinds."""
    return [name for name in all_stages(config) if config[name].kind in kinds]


def tokenizer_of(config: ConfigDict, stage: str) -> str:
    """The tokenizer stage whose encoder and codebook a stage uses: its own, or the one it names.

    Raises:
        InputError: it names none that there is.
    """
    if config[stage].kind == "tokenizer":
        return stage
    named, valid = config[stage].tokenizer, stages_of(config, "tokenizer")
    if named not in valid:
        raise InputError(f"config.{stage}.tokenizer={named!r}: {did_you_mean(str(named), valid)}")
    return named


def decoder_of(config: ConfigDict, stage: str) -> str:
    """The stage whose decoder turns a stage's tokens into images.

    It is the last one that was trained on the same codes: a decoder stage where there is one.
    """
    tokenizer = tokenizer_of(config, stage)
    if config[stage].kind != "prior":
        return stage
    decoders = [s for s in stages_of(config, "decoder") if tokenizer_of(config, s) == tokenizer]
    return decoders[-1] if decoders else tokenizer


def trained_stage(config: ConfigDict, workdir: epath.Path, stage: str) -> TrainedStage:
    """The place of a stage's weights: this workdir, or the run that `use_from` names.

    Raises:
        InputError: `use_from` is not the folder of a run, or its stage has another model.
    """
    source = config[stage].use_from
    if not source:
        return TrainedStage(stage, workdir / stage, config[stage])
    found = stage_of_run(config, stage, "use_from", source)
    settings = found.config.copy_and_resolve_references()
    settings.use = config[stage].use
    return dataclasses.replace(found, config=settings)


def stage_of_run(config: ConfigDict, stage: str, setting: str, workdir: str) -> TrainedStage:
    """The stage of the same name of another run, whose model has to be the same.

    Args:
        config: of this run.
        stage: name.
        setting: that names the other run, "use_from" or "init_from".
        workdir: the other run's.

    Raises:
        InputError: it is no run, has no such stage, takes it from a third run, or has another
            model.
    """
    named = f"config.{stage}.{setting}={workdir}"
    folder = open_path(workdir, f"config.{stage}.{setting}")
    theirs = read_config(folder)
    if stage not in all_stages(theirs):
        raise InputError(f"{named}: that run has no stage {stage}")
    settings = theirs[stage]
    if settings.use_from:
        raise InputError(
            f"{named}: that run took its {stage} from {settings.use_from}; name that workdir"
        )
    differing = differences(
        _as_json(settings.model), _as_json(config[stage].model), f"{stage}.model.", COMPUTE
    )
    if differing:
        raise InputError(
            f"{named}: its {stage} is another model: {'; '.join(differing)};"
            " set these as they were, or train one here"
        )
    return TrainedStage(stage, folder / stage, settings)


def _as_json(config: ConfigDict) -> Any:
    return json.loads(config.to_json())
