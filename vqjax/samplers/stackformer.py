"""Sampling of Stackformer: a code, then its position, token by token, each from a cache.

Source: paper 002, algorithm 1.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import InputError
from vqjax.nn.linear import transposed
from vqjax.nn.transformer import unrolled_cache
from vqjax.priors.stackformer import Caches, StackformerPrior
from vqjax.samplers.base import TokenSampling
from vqjax.samplers.filtering import filter_logits
from vqjax.samplers.guidance import both_conditions, doubled, guidance_weight, guided
from vqjax.settings import Range, setting
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class StackformerSampling(TokenSampling):
    """The settings of the sampler: those of drawing codes, and the like of drawing positions.

    Raster order, in which the prior is trained, is what it samples by itself, or nearly:
    `monotonic` allows nothing else. Guidance is of the codes and of the positions.

    Raises:
        FieldError: a value out of its range.
    """

    position_temperature: float = setting(
        1.0, "of the softmax that positions are drawn from", Range(0, above=True)
    )
    position_top_k: int = setting(0, "draw among the k most likely positions; 0 for all", Range(0))
    position_top_p: float = setting(
        1.0, "draw among the likeliest positions of this probability; 1 for all", Range(0, 1, True)
    )
    monotonic: bool = setting(
        False, "forbid positions before the last one, and those that leave too few for the rest"
    )


class _Drawn(NamedTuple):
    """The last token that was drawn, and the cells that are free."""

    codes: Int[Array, "b"]
    positions: Int[Array, "b"]
    free: Bool[Array, "b cells"]


def sample(
    prior: StackformerPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens | None,
    settings: StackformerSampling,
    grid: tuple[int, int],
) -> Tokens:
    """Samples as many tokens for each image as the prior was trained on, each at a cell of its own.

    Keys and values of the tokens before the current one are kept, not computed again. One compiled
    program.

    Args:
        prior: the model.
        variables: its variables.
        rng: a random key.
        condition: see `vqjax.priors.condition`.
        known: None; the prior takes no known tokens.
        settings: of the sampling.
        grid: (h, w) of the latent map: that of the prior.

    Returns:
        Tokens in raster order.

    Raises:
        InputError: there are known tokens.
    """
    if known is not None:
        raise InputError("Stackformer draws all tokens of an image, so none of them may be known")
    del grid
    return _sample(prior, variables, rng, condition, settings)


@functools.partial(jax.jit, static_argnames=("prior", "settings"))
def _sample(
    prior: StackformerPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    settings: StackformerSampling,
) -> Tokens:
    guides = settings.guidance != 1.0
    seen = both_conditions(prior.null_condition(condition), condition) if guides else condition
    number: int = prior.apply(variables, condition, method="num_tokens")
    batch, cells = len(condition), prior.grid[0] * prior.grid[1]

    def rows(drawn: Int[Array, "b"]) -> Int[Array, "rows"]:
        return doubled(drawn) if guides else drawn

    def combined(logits: Float[Array, "rows k"], index: Int[Array, ""]) -> Float[Array, "b k"]:
        if not guides:
            return logits
        weight = guidance_weight(index, number - 1, settings.guidance, settings.guidance_schedule)
        return guided(logits, weight)

    def draw_code(logits: Float[Array, "rows k"], index: Int[Array, ""]) -> Int[Array, "b"]:
        filters = settings.temperature, settings.top_k, settings.top_p
        logits = filter_logits(combined(logits, index), *filters)
        key = jax.random.fold_in(rng, 2 * index)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    def draw_position(
        logits: Float[Array, "rows cells"], codes: Int[Array, "b"], last: _Drawn, index: Array
    ) -> _Drawn:
        allowed = last.free
        if settings.monotonic:
            cell, after = jnp.arange(cells), number - 1 - index
            allowed &= (cell > last.positions[:, None]) & (cell < cells - after)
        logits = jnp.where(allowed, combined(logits, index), -jnp.inf)
        filters = settings.position_temperature, settings.position_top_k, settings.position_top_p
        key = jax.random.fold_in(rng, 2 * index + 1)
        drawn = jax.random.categorical(key, filter_logits(logits, *filters)).astype(jnp.int32)
        return _Drawn(codes, drawn, last.free.at[jnp.arange(batch), drawn].set(False))

    def step(
        carry: tuple[_Drawn, Caches], index: Int[Array, ""]
    ) -> tuple[tuple[_Drawn, Caches], tuple[Int[Array, "b"], Int[Array, "b"]]]:
        last, caches = carry
        before = rows(last.codes), rows(last.positions), index - 1
        logits, hidden, caches = step_prior.apply(weights, *before, seen, caches, method="advance")
        codes = draw_code(logits, index)
        current = hidden, rows(codes), index
        logits, caches = step_prior.apply(weights, *current, caches, method="locate")
        drawn = draw_position(logits, codes, last, index)
        return (drawn, caches), (drawn.codes, drawn.positions)

    zero = jnp.int32(0)
    nothing = _Drawn(
        jnp.zeros(batch, jnp.int32), jnp.full(batch, -1), jnp.ones((batch, cells), bool)
    )
    logits, hidden, caches = prior.apply(variables, seen, method="begin")
    codes = draw_code(logits, zero)
    logits, caches = prior.apply(variables, hidden, rows(codes), zero, caches, method="locate")
    first = draw_position(logits, codes, nothing, zero)
    # As in `vqjax.samplers.autoregressive`: only what is before the loop is scanned over layers.
    step_prior, weights = prior.unrolled(variables)
    weights = {**weights, "params": transposed(weights["params"])}
    start = first, Caches(*map(unrolled_cache, caches))
    _, others = jax.lax.scan(step, start, jnp.arange(1, number))
    codes, positions = (
        jnp.concatenate([one[None], rest]).T
        for one, rest in zip((first.codes, first.positions), others, strict=True)
    )
    return Tokens(codes, positions, prior.grid).in_raster_order()
