"""From the kind of a stage in a config to its class."""

from etils import epath
from ml_collections import ConfigDict

from vqjax.conditions import Condition, NoCondition
from vqjax.training.decoder_stage import DecoderStage
from vqjax.training.prior_stage import PriorStage
from vqjax.training.stage import Stage
from vqjax.training.tokenizer_stage import TokenizerStage


def build_stage(
    config: ConfigDict, name: str, workdir: epath.Path, condition: Condition | None = None
) -> Stage:
    """A stage of a run; nothing is read or written yet.

    Args:
        config: of the run.
        name: of the stage.
        workdir: folder of the run.
        condition: of the run, which only a prior needs; None is that of an unconditional run.

    Raises:
        InputError: unknown settings, settings out of their range, models that do not fit.
        ValueError: a prior of a conditional run without its condition.
    """
    kind = config[name].kind
    if kind == "prior":
        if condition is None and config.condition.name != NoCondition.name:
            raise ValueError(f"{name} needs the condition of its run, {config.condition.name!r}")
        return PriorStage(name, config, workdir, condition or NoCondition())
    kinds = {"tokenizer": TokenizerStage, "decoder": DecoderStage}
    return kinds[kind](name, config, workdir)
