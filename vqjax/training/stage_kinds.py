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
        condition: of the run, which only a prior needs.

    Raises:
        InputError: unknown settings, settings out of their range, models that do not fit.
    """
    kind = config[name].kind
    if kind == "prior":
        return PriorStage(name, config, workdir, condition or NoCondition())
    if kind == "decoder":
        return DecoderStage(name, config, workdir)
    return TokenizerStage(name, config, workdir)
