"""The condition of a prior: embedding, the null condition and its dropout.

A condition is ids [b, c] in [0, num_ids + 2): those of `vqjax.conditions`, the null id, which says
nothing (for guidance), and the padding id, which is masked as a key. c = 0 is unconditional.

Source: classifier-free guidance, Ho and Salimans 2022, section 3.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.conditions import null_id, padding_id
from vqjax.nn.linear import Embed, add_parameter
from vqjax.nn.transformer import INITIALIZER


def null_condition(condition: Int[Array, "b c"], num_ids: int) -> Int[Array, "b c"]:
    """The condition that says nothing, in the shape of another: the null id, then padding."""
    first = jnp.arange(condition.shape[1]) == 0
    row = jnp.where(first, null_id(num_ids), padding_id(num_ids))
    return jnp.broadcast_to(row.astype(condition.dtype), condition.shape)


def drop_condition(
    key: Key[Array, ""], condition: Int[Array, "b c"], num_ids: int, rate: float
) -> Int[Array, "b c"]:
    """The null condition for some of the images, drawn with probability `rate` for each."""
    dropped = jax.random.bernoulli(key, rate, (condition.shape[0], 1))
    return jnp.where(dropped, null_condition(condition, num_ids), condition)


def padding_first(
    x: Float[Array, "b c dim"], visible: Bool[Array, "b c"]
) -> tuple[Float[Array, "b c dim"], Bool[Array, "b c"]]:
    """A condition's vectors in their order, but those of padding in front of the others.

    So that the last one, which predicts the first code where codes follow, is never padding.

    Args:
        x: of `ConditionEmbedding`.
        visible: which are no padding; these come first.
    """
    length = x.shape[1]
    if length < 2:
        return x, visible
    count = jnp.sum(visible, axis=1, keepdims=True)
    places = (jnp.arange(length) + count) % length
    return jnp.take_along_axis(x, places[..., None], 1), jnp.take_along_axis(visible, places, 1)


class ConditionEmbedding(nn.Module):
    """Embeddings of a condition's ids, with their positions where there is more than one.

    Attributes:
        num_ids: size of the condition's vocabulary; the table has two more rows.
        dim: width.
        dtype: compute dtype; parameters are float32.
    """

    num_ids: int
    dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b c dim"], Bool[Array, "b c"]]:
        """The embeddings, and which of them may be seen: all but padding."""
        table = Embed(
            self.num_ids + 2, self.dim, embedding_init=INITIALIZER, dtype=self.dtype, name="ids"
        )
        x = table(condition)
        if condition.shape[1] > 1:
            x = add_parameter(x, self.param("position", INITIALIZER, x.shape[1:]))
        return x, condition != padding_id(self.num_ids)
