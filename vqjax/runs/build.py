"""From a config to its stages."""

from etils import epath
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.priors import Prior, build_prior
from vqjax.registry import did_you_mean
from vqjax.runs.workdir import trained_stage
from vqjax.tokenizers import Tokenizer, build_tokenizer
from vqjax.training.prior_stage import PriorStage
from vqjax.training.stage import Stage
from vqjax.training.tokenizer_stage import TokenizerStage

STAGES = ("tokenizer", "prior")


def stage_names(config: ConfigDict) -> list[str]:
    """The stages of a run, in order; on the command line, --config.stages=tokenizer,prior.

    Raises:
        InputError: unknown stage.
    """
    names = [name for item in config.stages for name in item.split(",")]
    for name in names:
        if name not in STAGES:
            raise InputError(f"config.stages has {name!r}: {did_you_mean(name, STAGES)}")
    return names


def build_models(config: ConfigDict, num_classes: int) -> tuple[Tokenizer, Prior]:
    """Tokenizer and prior of a config.

    Args:
        config: of the run.
        num_classes: of its data set.

    Raises:
        InputError: a config that names no model, or models and images that do not fit each other.
    """
    tokenizer = build_tokenizer(config.tokenizer.model)
    size = (config.data.resolution, config.data.resolution)
    return tokenizer, build_prior(config.prior.model, tokenizer, size, num_classes)


def build_stage(config: ConfigDict, name: str, workdir: epath.PathLike, num_classes: int) -> Stage:
    """A stage of a run; nothing is read or written yet.

    Args:
        config: of the run.
        name: one of `STAGES`.
        workdir: folder of the run.
        num_classes: of its data set.

    Raises:
        InputError: as `build_models`, or settings out of their range.
    """
    tokenizer, prior = build_models(config, num_classes)
    if name == "tokenizer":
        return TokenizerStage(
            name, config.tokenizer, config.seed, tokenizer, config.data.resolution
        )
    return PriorStage(
        name,
        config.prior,
        config.seed,
        prior,
        tokenizer,
        *trained_stage(config, workdir, "tokenizer"),
        config.data.resolution,
        config.sampling,
    )
