"""Samplers of the priors, by the same names; each draws tokens by one jitted program.

A sampler is a settings dataclass (`vqjax.settings`) and a pure function

    sample(prior, variables, rng, condition, known, settings, grid) -> Tokens

without a Python loop over tokens or a way back to the host inside; `known` tokens (or None) come
back unchanged. To add one, write its file here, with the settings of `TokenSampling` and its own,
and name it in `SAMPLERS`.
"""

from vqjax.samplers import autoregressive, masked, multigrained, stackformer
from vqjax.samplers.base import Sampler, TokenSampling

__all__ = ["SAMPLERS", "Sampler", "TokenSampling"]

SAMPLERS: dict[str, Sampler] = {
    "multigrained": Sampler(multigrained.MultiGrainedSampling, multigrained.sample),
    "autoregressive": Sampler(autoregressive.AutoregressiveSampling, autoregressive.sample),
    "masked": Sampler(masked.MaskedSampling, masked.sample),
    "stackformer": Sampler(stackformer.StackformerSampling, stackformer.sample),
}
