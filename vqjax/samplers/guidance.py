"""Classifier-free guidance of any prior.

Source: Ho and Salimans 2022, Eq. 6, on logits as in Muse (Chang et al. 2023, section 2.7).
"""

from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vqjax.errors import FieldError
from vqjax.priors.base import Prior

Schedule = Literal["constant", "linear"]


def check_guidance(prior: Prior, settings: Any) -> None:
    """Checks that a prior was trained for the guidance that a sampler's settings ask for.

    Raises:
        FieldError: it is unconditional, or has never seen the null condition.
    """
    guidance = getattr(settings, "guidance", 1.0)
    if guidance == 1.0:
        return
    if not prior.num_ids:
        raise FieldError(f"guidance={guidance}: this prior is unconditional, so leave it at 1")
    if not prior.condition_dropout:
        raise FieldError(
            f"guidance={guidance}: this prior has never seen the null condition, so leave it at 1,"
            " or train one with model.condition_dropout=0.1"
        )


def guidance_weight(
    step: Int[Array, ""], last: int, guidance: float, schedule: Schedule
) -> Float[Array, ""]:
    """The weight of guidance at a step.

    Args:
        step: steps of the whole sampling that lie before it.
        last: index of the last step.
        guidance: the weight that is asked for.
        schedule: "constant", or "linear": from 1 at the first step to `guidance` at the last.
    """
    if schedule == "constant":
        return jnp.float32(guidance)
    return 1.0 + (guidance - 1.0) * (step / max(last, 1))


def step_logits(
    logits_of: Callable[..., Float[Array, "rows *s k"]],
    rows: tuple[Any, ...],
    prior: Prior,
    condition: Int[Array, "b c"],
    settings: Any,
    step: Int[Array, ""],
    last: int,
) -> Float[Array, "b *s k"]:
    """Logits of a step of sampling, guided where the settings ask for it.

    Args:
        logits_of: see `guided_logits`.
        rows: likewise.
        prior: whose null condition guidance takes.
        condition: see `vqjax.priors.condition`.
        settings: a `TokenSampling`.
        step: see `guidance_weight`.
        last: likewise.
    """
    if settings.guidance == 1.0:
        return logits_of(*rows, condition)
    weight = guidance_weight(step, last, settings.guidance, settings.guidance_schedule)
    return guided_logits(logits_of, rows, prior.null_condition(condition), condition, weight)


def guided_logits(
    logits_of: Callable[..., Float[Array, "twice *s k"]],
    rows: tuple[Any, ...],
    null: Int[Array, "b c"],
    condition: Int[Array, "b c"],
    weight: Float[Array, ""],
) -> Float[Array, "b *s k"]:
    """Logits under the null condition, and `weight` times what the condition adds to them.

    Both come from one call on twice the rows.

    Args:
        logits_of: logits from `rows` and a condition.
        rows: arrays with the batch in front.
        null: the condition that says nothing.
        condition: what the logits are to be guided to.
        weight: 1 for the logits under the condition, 0 for those without.
    """
    twice = jax.tree.map(doubled, rows)
    return guided(logits_of(*twice, both_conditions(null, condition)), weight)


def both_conditions(null: Int[Array, "b c"], condition: Int[Array, "b c"]) -> Int[Array, "twice c"]:
    """The null condition and its own of each image, for what `doubled` makes of its row."""
    # The two rows of an image side by side: a batch that is split over devices stays where it is.
    return einops.rearrange(jnp.stack([null, condition]), "two b c -> (b two) c")


def doubled(x: Shaped[Array, "b ..."]) -> Shaped[Array, "twice ..."]:
    """Each row twice."""
    return jnp.repeat(x, 2, axis=0)


def guided(logits: Float[Array, "twice *s k"], weight: Float[Array, ""]) -> Float[Array, "b *s k"]:
    """Logits under `both_conditions` as one: without the condition, and `weight` times its part."""
    without, given = einops.rearrange(logits, "(b two) ... -> two b ...", two=2)
    return without + weight * (given - without)
