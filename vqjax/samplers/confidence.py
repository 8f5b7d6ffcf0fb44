"""Parallel decoding: how many tokens each step fixes, and which, by their confidence.

Source: MaskGIT (Chang et al. 2022), section 3.2.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.priors.masking import MaskSchedule, masked_fraction
from vqjax.samplers.base import TokenSampling
from vqjax.samplers.filtering import filter_logits
from vqjax.settings import Range, setting


@dataclasses.dataclass(frozen=True)
class ParallelSampling(TokenSampling):
    """The settings of parallel decoding; the noise on the confidence falls to 0 over the steps.

    Raises:
        FieldError: a value out of its range.
    """

    steps: int = setting(12, "parallel steps in which the whole map is filled", Range(1))
    choice_temperature: float = setting(
        4.5, "Gumbel noise on the confidence by which tokens are kept", Range(0)
    )
    mask_schedule: MaskSchedule = setting(
        "cosine", "how the part of the map that is still masked falls over the steps"
    )


def still_masked(
    step: Int[Array, ""],
    steps: int,
    at_start: Int[Array, "b"],
    now: Int[Array, "b"],
    schedule: MaskSchedule = "cosine",
) -> Int[Array, "b"]:
    """The number of tokens that stay masked: floor(start * schedule), fewer than now.

    Args:
        step: 0 for the first.
        steps: T.
        at_start: unknown tokens before the first step.
        now: unknown tokens before this step.
        schedule: see `masked_fraction`.

    Source: MaskGIT, section 3.2, per image and block.
    """
    ratio = (step + 1) / steps
    fraction = masked_fraction(ratio, schedule)
    # The last step leaves none, whatever cos(pi/2) is rounded to.
    planned = jnp.where(step + 1 >= steps, 0, jnp.floor(at_start * fraction + 1e-4))
    return jnp.clip(planned, 0, jnp.maximum(now - 1, 0)).astype(jnp.int32)


def choose(
    key: Key[Array, ""],
    logits: Float[Array, "b n k"],
    unknown: Bool[Array, "b n"],
    keep_masked: Int[Array, "b"],
    noise: Float[Array, ""],
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Draws a code for every cell and chooses the unknown cells that are fixed by it.

    The confidence of a drawn code is its log-probability by these logits (guided, where there is
    guidance) before temperature and filters, plus `noise` times a Gumbel variable.

    Args:
        key: a random key.
        logits: of each cell.
        unknown: cells that are to be sampled.
        keep_masked: how many of them stay masked: those of least confidence.
        noise: scale of the Gumbel noise, 0 or more.
        temperature: of the softmax that codes are drawn from.
        top_k: see `vqjax.samplers.filtering`.
        top_p: see there.

    Returns:
        The drawn codes, and the unknown cells that are fixed now, exactly (unknown - keep_masked)
        of them an image.
    """
    key_code, key_noise = jax.random.split(key)
    filtered = filter_logits(logits, temperature, top_k, top_p)
    drawn = jax.random.categorical(key_code, filtered)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
    confidence = log_p + noise * jax.random.gumbel(key_noise, log_p.shape)
    # Known cells rank last, above every finite confidence.
    rank = jnp.argsort(jnp.argsort(jnp.where(unknown, confidence, jnp.inf), axis=-1), axis=-1)
    return drawn.astype(jnp.int32), unknown & (rank >= keep_masked[:, None])


def parallel_step(
    key: Key[Array, ""],
    logits: Float[Array, "b n k"],
    unknown: Bool[Array, "b n"],
    at_start: Int[Array, "b"],
    step: Int[Array, ""],
    settings: ParallelSampling,
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """One step of parallel decoding: the codes it draws, and the unknown cells that it fixes.

    Args:
        key: a random key.
        logits: of each cell.
        unknown: cells that are to be sampled.
        at_start: how many they were before the first step.
        step: 0 for the first.
        settings: of the sampling.
    """
    now = jnp.sum(unknown, axis=-1)
    keep_masked = still_masked(step, settings.steps, at_start, now, settings.mask_schedule)
    noise = settings.choice_temperature * (1.0 - (step + 1) / settings.steps)
    draw = settings.temperature, settings.top_k, settings.top_p
    return choose(key, logits, unknown, keep_masked, noise, *draw)
