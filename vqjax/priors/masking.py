"""Mask schedules and random masks of masked token modelling.

Source: MaskGIT (Chang et al. 2022), section 3.1; paper 000, section 3.3.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MaskSchedule = Literal["cosine", "linear", "square", "cubic", "root"]

# Fractions of the tokens that are masked for the held-out losses.
MASK_RATIOS = (0.25, 0.5, 0.75, 1.0)


def masked_fraction(ratio: Float[Array, "*b"], schedule: MaskSchedule) -> Float[Array, "*b"]:
    """Fraction of the tokens that is masked: from 1 at ratio 0 to 0 at ratio 1.

    The cosine schedule is cos(pi/2 ratio), the others 1 less a power of the ratio: 1 (linear), 2
    (square), 3 (cubic) or 1/2 (root).

    Source: MaskGIT, section 4.4 and table 3.
    """
    if schedule == "cosine":
        return jnp.maximum(jnp.cos(0.5 * jnp.pi * ratio), 0.0)
    return 1.0 - ratio ** {"linear": 1.0, "square": 2.0, "cubic": 3.0, "root": 0.5}[schedule]


def mask_count(fraction: Float[Array, "*b"], total: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """ceil(fraction * total), at least one: how many of `total` tokens are masked in training."""
    # A product that misses an integer by rounding must not be taken up to the next.
    return jnp.clip(jnp.ceil(fraction * total - 1e-4), 1, total).astype(jnp.int32)


def random_mask(
    key: Key[Array, ""], candidates: Bool[Array, "*b n"], count: Int[Array, "*b"]
) -> Bool[Array, "*b n"]:
    """Exactly `count` of the candidates, uniformly; all of them where there are fewer."""
    score = jnp.where(candidates, jax.random.uniform(key, candidates.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(score, axis=-1), axis=-1)
    return candidates & (rank < count[..., None])
