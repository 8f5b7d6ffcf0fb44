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


class ConditionEmbedding(nn.Module):
    """Embeddings of a condition's ids, with their positions where there is more than one.

    Attributes:
        num_ids: size of the condition's vocabulary; the table has two more rows.
        dim: width.
        dtype: compute dtype; parameters are float32.
        positions: add a learned position to each id of a longer condition; a prior leaves them out
            that has positions of its own for the whole of its sequence.
    """

    num_ids: int
    dim: int
    dtype: str = "float32"
    positions: bool = True

    @nn.compact
    def __call__(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b c dim"], Bool[Array, "b c"]]:
        """The embeddings, and which of them may be seen: all but padding."""
        table = Embed(
            self.num_ids + 2, self.dim, embedding_init=INITIALIZER, dtype=self.dtype, name="ids"
        )
        x = table(condition)
        if self.positions and condition.shape[1] > 1:
            x = add_parameter(x, self.param("position", INITIALIZER, x.shape[1:]))
        return x, condition != padding_id(self.num_ids)
