"""Sampling of the masked prior: T parallel steps over the whole map.

Source: MaskGIT (Chang et al. 2022), section 3.2; paper 001, table 10.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from vqjax.priors.masked import MaskedPrior
from vqjax.samplers.confidence import ParallelSampling, parallel_step
from vqjax.samplers.guidance import step_logits
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class MaskedSampling(ParallelSampling):
    """The settings of the sampler: those of parallel decoding.

    Raises:
        FieldError: a value out of its range.
    """


def sample(
    prior: MaskedPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens | None,
    settings: MaskedSampling,
    grid: tuple[int, int],
) -> Tokens:
    """Samples the unknown tokens of a batch; every step sees all that are known by then.

    More steps than unknown tokens end early. One compiled program, whatever is known.

    Args:
        prior: the model.
        variables: its variables.
        rng: a random key.
        condition: see `vqjax.priors.condition`.
        known: tokens that are given; they come back unchanged. None for none.
        settings: of the sampling.
        grid: (h, w) of the latent map: that of the prior.

    Returns:
        Dense tokens.
    """
    given = Tokens.none(len(condition), grid) if known is None else known
    return _sample(prior, variables, rng, condition, given, settings)


@functools.partial(jax.jit, static_argnames=("prior", "settings"))
def _sample(
    prior: MaskedPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens,
    settings: MaskedSampling,
) -> Tokens:
    """`sample` with known tokens in the shape of dense ones."""
    prior, variables = prior.unrolled(variables)
    start = known.scattered(prior.mask_id)

    def unknown_of(codes: Int[Array, "b n"]) -> Bool[Array, "b n"]:
        return codes == prior.mask_id

    at_start = jnp.sum(unknown_of(start), axis=-1)

    def more(state: tuple[Array, Array]) -> Bool[Array, ""]:
        step, codes = state
        return (step < settings.steps) & jnp.any(unknown_of(codes))

    def advance(state: tuple[Array, Array]) -> tuple[Array, Array]:
        step, codes = state
        logits_of = functools.partial(prior.apply, variables)
        last = settings.steps - 1
        logits = step_logits(logits_of, (codes,), prior, condition, settings, step, last)
        key = jax.random.fold_in(rng, step)
        drawn, fixed = parallel_step(key, logits, unknown_of(codes), at_start, step, settings)
        return step + 1, jnp.where(fixed, drawn, codes)

    _, codes = jax.lax.while_loop(more, advance, (jnp.int32(0), start))
    return Tokens.dense(codes.reshape(-1, *known.grid))
