"""Mask schedules and random masks of masked token modelling.

Source: MaskGIT (Chang et al. 2022), section 3.1; paper 000, section 3.3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def cosine_schedule(ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Fraction of the tokens that is masked, cos(pi/2 ratio): from 1 at ratio 0 to 0 at ratio 1."""
    return jnp.maximum(jnp.cos(0.5 * jnp.pi * ratio), 0.0)


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
