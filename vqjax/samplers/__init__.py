"""Samplers of the priors, by the same names; each draws tokens by one jitted program.

A sampler is a settings dataclass (`vqjax.settings`) and a pure function

    sample(prior, variables, rng, condition, known, settings, grid) -> Tokens

without a Python loop over tokens or a way back to the host inside; `known` tokens (or None) come
back unchanged. To add one, write its file here and name it in `SAMPLERS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from vqjax.samplers import multigrained
from vqjax.tokens import Tokens


class Sampler(NamedTuple):
    """A way to draw tokens from a prior.

    Attributes:
        settings: the dataclass of its settings.
        sample: the function that draws.
    """

    settings: type
    sample: Callable[..., Tokens]


SAMPLERS: dict[str, Sampler] = {
    "multigrained": Sampler(multigrained.MultiGrainedSampling, multigrained.sample)
}
