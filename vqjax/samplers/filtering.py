"""Temperature, top-k and top-p (nucleus sampling, Holtzman et al. 2020) on logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def top_k(logits: Float[Array, "*b k"], k: int) -> Float[Array, "*b k"]:
    """Forbids (-inf) all but the k largest logits and ties with them; k = 0 forbids nothing."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def top_p(logits: Float[Array, "*b k"], p: float) -> Float[Array, "*b k"]:
    """Forbids (-inf) all but the fewest most likely classes whose probability reaches p.

    Ties with the last of them stay; p = 1 forbids nothing.
    """
    if p >= 1.0:
        return logits
    order = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(order, axis=-1)
    # A class stays while those before it have not yet reached p, so the first always does.
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = jnp.sum(before < p, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(order, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def filter_logits(
    logits: Float[Array, "*b k"], temperature: float = 1.0, k: int = 0, p: float = 1.0
) -> Float[Array, "*b k"]:
    """Logits / temperature, then top-k, then top-p."""
    return top_p(top_k(logits / temperature, k), p)
