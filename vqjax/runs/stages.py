"""The stages of a run: their kinds, their order, and where the weights of each are.

A stage is a sub-config with a `kind`:

- "tokenizer" trains encoder, codebook and decoder;
- "decoder" trains a decoder anew on the codes of `<stage>.tokenizer`, which does not move;
- "prior" trains a distribution over the codes of `<stage>.tokenizer`.
"""

import dataclasses
import json
from typing import Any, Literal

from etils import epath
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.errors import FieldError, InputError, did_you_mean
from vqjax.files import open_path
from vqjax.runs.checkpoints import saved_steps
from vqjax.runs.workdir import COMPUTE, differences, read_config
from vqjax.settings import Range, check_settings, setting

# By kind, in the order in which stages build on each other: what a stage has beside the settings
# that all have (its parts, and the stage that it builds on).
KINDS = {
    "tokenizer": ("model", "optimizer", "frechet", "loss", "discriminator", "kmeans"),
    "decoder": ("model", "optimizer", "frechet", "loss", "discriminator", "tokenizer"),
    "prior": ("model", "optimizer", "frechet", "tokenizer", "data"),
}
# Parts that a config made before there were any lacks; their settings are then the defaults.
_MAY_BE_MISSING = ("data", "kmeans")


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """The settings that every kind of stage has; `config.<stage>` without its parts.

    Raises:
        FieldError: a value out of its range.
    """

    kind: Literal["tokenizer", "decoder", "prior"] = setting("tokenizer", "what is trained")
    use_from: str = setting("", "workdir whose stage of this name is used instead of training one")
    init_from: str = setting("", "workdir from whose stage's weights the training starts")
    batch_size: int = setting(256, "images a step, of all devices together", Range(1))
    microbatches: int = setting(1, "parts that a batch is worked off in, to save memory", Range(1))
    steps: int = setting(100_000, "updates", Range(1))
    ema_decay: float = setting(
        0.0, "of the weights' moving average; 0 for none", Range(0, 1, below=True)
    )
    log_every: int = setting(50, "steps between two lines of metrics", Range(1))
    eval_every: int = setting(5_000, "steps between two validation passes", Range(1))
    eval_images: int = setting(2_048, "validation images of a pass, at most", Range(1))
    checkpoint_every: int = setting(5_000, "steps between two checkpoints", Range(1))
    keep_checkpoints: int = setting(2, "newest checkpoints that stay, besides the best", Range(1))
    best_metric: str = setting("", "validation metric by which the best checkpoint is kept")
    best_mode: Literal["max", "min"] = setting("max", "whether the best is the largest")
    use: Literal["last", "best"] = setting("last", "checkpoint that later stages and sampling take")

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)
        if self.batch_size % self.microbatches:
            raise FieldError(
                f"batch_size={self.batch_size} does not divide into"
                f" microbatches={self.microbatches}: change one of the two"
            )
        if self.init_from and self.use_from:
            raise FieldError(
                f"init_from={self.init_from}: use_from is set too, and nothing is trained then;"
                " leave one out"
            )


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """Where a stage's weights are, and how they are trained.

    Attributes:
        name: of the stage.
        folder: with its checkpoints.
        config: its sub-config.
    """

    name: str
    folder: epath.Path
    config: ConfigDict

    @property
    def settings(self) -> StageSettings:
        """The settings that it is trained with."""
        return stage_settings(self.name, self.config)


def stage_settings(name: str, config: ConfigDict) -> StageSettings:
    """The settings of a stage, without its parts.

    Args:
        name: of the stage, for messages.
        config: `config.<name>`.

    Raises:
        InputError: a part is missing, an unknown setting, or one out of its range.
    """
    parts = KINDS[config.kind]
    for part in parts:
        if part not in config and part not in _MAY_BE_MISSING:
            raise InputError(
                f"config.{name}.{part} is missing: a stage of kind {config.kind!r} has"
                f" {', '.join(parts)}"
            )
    given = {key: value for key, value in config.items() if key not in parts}
    return registry.from_fields(name, StageSettings, given)


def all_stages(config: ConfigDict) -> list[str]:
    """Names of the stages that a config describes: tokenizers, then decoders, then priors.

    Of one kind, those that `config.stages` lists come last, in its order.

    Raises:
        InputError: a stage of an unknown kind.
    """
    names = [
        name for name in config if isinstance(config[name], ConfigDict) and "kind" in config[name]
    ]
    for name in names:
        kind = config[name].kind
        if kind not in KINDS:
            raise InputError(f"config.{name}.kind={kind!r}: {did_you_mean(str(kind), KINDS)}")
    kinds, listed = list(KINDS), _listed(config)

    def order(name: str) -> tuple[int, int, str]:
        place = listed.index(name) if name in listed else -1
        return kinds.index(config[name].kind), place, name

    return sorted(names, key=order)


def stages_to_train(config: ConfigDict) -> list[str]:
    """The stages that are to be trained, in order; on the command line, --config.stages=a,b.

    Those that are taken from another run are left out.

    Raises:
        InputError: unknown stage.
    """
    known = all_stages(config)
    names = _listed(config)
    for name in names:
        if name not in known:
            raise InputError(f"config.stages has {name!r}: {did_you_mean(name, known)}")
    return [name for name in names if not config[name].use_from]


def check_weights_will_be_there(config: ConfigDict, workdir: epath.Path) -> None:
    """Checks that each stage finds the weights that it builds on, when its turn comes.

    Raises:
        InputError: a stage that is neither trained before it nor elsewhere already, or as
            `trained_stage` and `source_of_start`.
    """
    done: list[str] = []
    for name in stages_to_train(config):
        if config[name].init_from and is_to_start(workdir, name):
            check_trained(source_of_start(config, name))
        for needed in (tokenizer_of(config, name), decoder_of(config, name)):
            if needed != name and needed not in done:
                check_trained(trained_stage(config, workdir, needed))
        done.append(name)


def is_to_start(workdir: epath.Path, stage: str) -> bool:
    """True if a stage has no checkpoint to go on from: it needs what it starts from."""
    return not saved_steps(workdir / stage / "checkpoints")


def check_trained(stage: TrainedStage) -> None:
    """Raises InputError if a stage has no checkpoints."""
    if not (stage.folder / "checkpoints").is_dir():
        raise untrained(stage)


def untrained(stage: TrainedStage) -> InputError:
    """The error of a stage that has no checkpoint."""
    return InputError(
        f"there is no trained {stage.name} in {stage.folder.parent}: run train.py until that stage"
        f" is finished, or name a workdir that has one by --config.{stage.name}.use_from"
    )


def _listed(config: ConfigDict) -> list[str]:
    return [name for item in config.stages for name in item.split(",")]


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
    if not valid:
        raise InputError(
            f"config.{stage}.tokenizer={named!r}: the config has no stage of kind 'tokenizer',"
            f" whose codes a stage of kind {config[stage].kind!r} needs; add it, with its use_from"
            " where another run has trained it"
        )
    if named not in valid:
        raise InputError(f"config.{stage}.tokenizer={named!r}: {did_you_mean(str(named), valid)}")
    return named


def decoder_of(config: ConfigDict, stage: str) -> str:
    """The stage whose decoder turns a stage's tokens into images.

    It is the last one that was trained on the same codes: a decoder stage where there is one.
    """
    return decoders_of(config, stage)[-1] if config[stage].kind == "prior" else stage


def decoders_of(config: ConfigDict, stage: str) -> list[str]:
    """The stages that train a decoder on a stage's codes: its tokenizer, then decoder stages."""
    tokenizer = tokenizer_of(config, stage)
    decoders = stages_of(config, "decoder")
    return [tokenizer, *(name for name in decoders if tokenizer_of(config, name) == tokenizer)]


def trained_stage(config: ConfigDict, workdir: epath.Path, stage: str) -> TrainedStage:
    """A stage of this workdir, or of the run that `use_from` names.

    Raises:
        InputError: as `stage_of_run`, or its stage has another model or was trained on the codes of
            another one.
    """
    source = config[stage].use_from
    if not source:
        return TrainedStage(stage, workdir / stage, config[stage])
    found = stage_of_run(config, stage, "use_from")
    differing = model_differences(found, config[stage])
    if differing:
        raise InputError(
            f"config.{stage}.use_from={source}: its {stage} is another model:"
            f" {'; '.join(differing)}; set these as they were, or train one here"
        )
    differing = _code_differences(read_config(found.folder.parent), config, stage)
    if differing:
        raise InputError(
            f"config.{stage}.use_from={source}: its {stage} was trained on other codes:"
            f" {'; '.join(differing)}; set these as they were, or train one here"
        )
    settings = found.config.copy_and_resolve_references()
    settings.use = config[stage].use
    return dataclasses.replace(found, config=settings)


def source_of_start(config: ConfigDict, stage: str) -> TrainedStage:
    """The stage of the run that `init_from` names; the settings of its model may be others.

    Raises:
        InputError: as `stage_of_run`, or its stage has a model of another name.
    """
    found = stage_of_run(config, stage, "init_from")
    theirs, ours = found.config.model.name, config[stage].model.name
    if theirs != ours:
        raise InputError(
            f"config.{stage}.init_from={config[stage].init_from}: its model is {theirs}, here it is"
            f" {ours}; set config.{stage}.model.name={theirs}, or leave init_from out"
        )
    return found


def stage_of_run(
    config: ConfigDict, stage: str, setting: Literal["use_from", "init_from"]
) -> TrainedStage:
    """The stage of the same name and kind of the run that a setting of a stage names.

    Raises:
        InputError: it is no run, has no such stage, or takes it from a third run.
    """
    named = f"config.{stage}.{setting}={config[stage][setting]}"
    folder = open_path(config[stage][setting], f"config.{stage}.{setting}")
    try:
        theirs = read_config(folder)
    except InputError as e:
        raise InputError(f"{named}: {e}") from None
    if stage not in all_stages(theirs):
        raise InputError(f"{named}: that run has no stage {stage}")
    settings = theirs[stage]
    if settings.kind != config[stage].kind:
        raise InputError(
            f"{named}: its {stage} is of kind {settings.kind!r}, this one {config[stage].kind!r}"
        )
    if settings.use_from:
        raise InputError(
            f"{named}: that run took its {stage} from {settings.use_from}; name that workdir"
        )
    return TrainedStage(stage, folder / stage, settings)


def model_differences(stage: TrainedStage, config: ConfigDict) -> list[str]:
    """What a stage's model computes otherwise than that of another sub-config, in words."""
    theirs, ours = (_as_json(settings.model) for settings in (stage.config, config))
    return differences(theirs, ours, f"{stage.name}.model.", COMPUTE)


def _code_differences(theirs: ConfigDict, ours: ConfigDict, stage: str) -> list[str]:
    """What of two configs gives a stage that builds on codes other ones, in words."""
    if ours[stage].kind == "tokenizer":
        return []
    there, here = tokenizer_of(theirs, stage), tokenizer_of(ours, stage)
    before, now = _as_json(theirs[there].model), _as_json(ours[here].model)
    differing = differences(before, now, f"{here}.model.", COMPUTE)
    if ours[stage].kind == "prior":
        before, now = ({"resolution": config.data.resolution} for config in (theirs, ours))
        differing += differences(before, now, "data.")
    return differing


def _as_json(config: ConfigDict) -> Any:
    return json.loads(config.to_json())
