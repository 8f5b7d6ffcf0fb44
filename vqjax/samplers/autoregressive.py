"""Sampling of the autoregressive prior: code by code in raster order, each from a cache.

Source: VQGAN (Esser et al. 2021), section 3.2; paper 001, table 10.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.nn.linear import transposed
from vqjax.nn.transformer import Cache, unrolled_cache
from vqjax.priors.autoregressive import AutoregressivePrior
from vqjax.samplers.base import TokenSampling
from vqjax.samplers.filtering import filter_logits
from vqjax.samplers.guidance import both_conditions, doubled, guidance_weight, guided
from vqjax.tokens import Tokens

_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class AutoregressiveSampling(TokenSampling):
    """The settings of the sampler: those of drawing codes.

    Raises:
        FieldError: a value out of its range.
    """


def sample(
    prior: AutoregressivePrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens | None,
    settings: AutoregressiveSampling,
    grid: tuple[int, int],
) -> Tokens:
    """Samples the unknown tokens of a batch, one cell after the other.

    Keys and values of the codes before the current one are kept, not computed again. A known token
    is seen by the cells after it alone: those before it are drawn as if it were not known. One
    compiled program, whatever is known.

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
    prior: AutoregressivePrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens,
    settings: AutoregressiveSampling,
) -> Tokens:
    """`sample` with known tokens in the shape of dense ones."""
    given = known.scattered(_UNKNOWN)
    last = given.shape[1] - 1
    guides = settings.guidance != 1.0
    seen = both_conditions(prior.null_condition(condition), condition) if guides else condition

    def draw(logits: Float[Array, "rows k"], cell: Int[Array, ""]) -> Int[Array, "b"]:
        if guides:
            schedule = settings.guidance_schedule
            logits = guided(logits, guidance_weight(cell, last, settings.guidance, schedule))
        logits = filter_logits(logits, settings.temperature, settings.top_k, settings.top_p)
        drawn = jax.random.categorical(jax.random.fold_in(rng, cell), logits)
        known_codes = given[:, cell]
        return jnp.where(known_codes == _UNKNOWN, drawn.astype(jnp.int32), known_codes)

    def step(
        carry: tuple[Int[Array, "b"], Cache], cell: Int[Array, ""]
    ) -> tuple[tuple[Int[Array, "b"], Cache], Int[Array, "b"]]:
        codes, cache = carry
        rows = doubled(codes) if guides else codes
        logits, cache = step_prior.apply(weights, rows, cell - 1, seen, cache, method="advance")
        codes = draw(logits, cell)
        return (codes, cache), codes

    logits, cache = prior.apply(variables, seen, method="begin")
    first = draw(logits, jnp.int32(0))
    # Steps are bound by the reading of the parameters, which a scan over layers would copy in each.
    # The beginning is scanned, so that every layer is compiled once.
    step_prior, weights = prior.unrolled(variables)
    weights = {**weights, "params": transposed(weights["params"])}
    start: tuple[Array, Cache] = (first, unrolled_cache(cache))
    _, others = jax.lax.scan(step, start, jnp.arange(1, last + 1))
    codes = jnp.concatenate([first[None], others]).T
    return Tokens.dense(codes.reshape(-1, *known.grid))
