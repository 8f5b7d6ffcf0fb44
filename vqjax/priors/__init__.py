"""Stage 2: distributions over tokens. `config.<stage>.model.name` picks one.

To add a prior, write its file here and its sampler's in `vqjax.samplers`, and name their classes in
`PRIORS` and `SAMPLERS`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.priors.autoregressive import AutoregressivePrior
from vqjax.priors.base import Prior
from vqjax.priors.masked import MaskedPrior
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.priors.stackformer import StackformerPrior

__all__ = ["PRIORS", "Prior", "build_prior"]

Grid = tuple[int, int]

PRIORS: dict[str, type[Prior]] = {
    "multigrained": MultiGrainedPrior,
    "autoregressive": AutoregressivePrior,
    "masked": MaskedPrior,
    "stackformer": StackformerPrior,
}


def build_prior(
    part: str, config: Mapping[str, Any] | ConfigDict, num_codes: int, grid: Grid, num_ids: int
) -> Prior:
    """The prior of a stage.

    Args:
        part: path of its sub-config, for messages ("prior.model").
        config: the model's "name" and its fields.
        num_codes: size of the codebook.
        grid: latent grid (h, w) of the training images.
        num_ids: size of the condition's vocabulary.

    Raises:
        InputError: unknown name or field, or a value out of its range.
    """
    given = {"num_codes": num_codes, "grid": grid, "num_ids": num_ids}
    return registry.build(part, PRIORS, config, **given)
