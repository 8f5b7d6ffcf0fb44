"""Cross-entropy of codes."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*positions k"],
    labels: Int[Array, "*positions"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*positions"]:
    """Softmax cross-entropy of each position in nats.

    Args:
        logits: unnormalised log-probabilities of the k classes.
        labels: the right class, [0, k).
        label_smoothing: the share of the target that is spread evenly over all k classes
            (Szegedy et al., 2016, section 7), [0, 1). It needs finite logits.
    """
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing == 0.0:
        return loss
    uniform_loss = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform_loss
