"""The contract of a prior, and what all priors share.

A prior is a Linen module: p(tokens | condition). The fields `num_codes`, `grid` and `num_ids` come
from the tokenizer and the condition; all others from `config.<stage>.model`. Beside what is here it
has a `__call__` of its own, which its sampler drives (`vqjax.samplers`).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.priors import condition as conditions
from vqjax.random_keys import split_by_name
from vqjax.settings import Range, check_settings, setting
from vqjax.tokens import Tokens

# Sum and count: means are taken over all batches of a pass.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Prior(nn.Module):
    """A distribution over the tokens of images.

    Attributes:
        num_codes: K of the tokenizer.
        grid: (h, w) latent grid of the training images.
        num_ids: size of the condition's vocabulary; 0 for an unconditional prior.
        condition_dropout: which classifier-free guidance in sampling needs.
    """

    # The tokens that it takes: "dense" (a code for every cell), "sparse", or "any".
    token_kind: ClassVar[Literal["dense", "sparse", "any"]] = "dense"
    # Whether it takes grids other than that of the training images.
    any_grid: ClassVar[bool] = False
    # Whether its sampler takes known tokens, which editing needs.
    known_tokens: ClassVar[bool] = False
    # Streams that `loss` draws random numbers from, besides "params".
    rngs: ClassVar[tuple[str, ...]] = ("dropout",)

    num_codes: int
    grid: tuple[int, int]
    num_ids: int = 0
    condition_dropout: float = setting(
        0.0,
        "probability that an image's condition is the null one in a training step",
        Range(0, 1, below=True),
    )

    def __post_init__(self) -> None:
        """Checks the fields, each by itself.

        Raises:
            FieldError: a value out of its range.
        """
        check_settings(self)
        super().__post_init__()

    if TYPE_CHECKING:

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            """Linen's own, which has no type for the result of a method of ours."""

    def loss(
        self, tokens: Tokens, condition: Int[Array, "b c"], train: bool
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean loss of a batch in nats, of how many predictions it is the mean, metrics.

        Args:
            tokens: of the batch.
            condition: see `vqjax.priors.condition`.
            train: label smoothing, dropout (of the condition too).
        """
        raise NotImplementedError

    def held_out(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        valid: Bool[Array, "b"],
        key: Key[Array, ""],
    ) -> Sums:
        """Metrics of held-out images: of each the sum and the count that a whole pass adds up.

        Args:
            tokens: of a batch.
            condition: see `vqjax.priors.condition`.
            valid: images that count.
            key: of all draws, the same at every evaluation.
        """
        raise NotImplementedError

    def null_condition(self, condition: Int[Array, "b c"]) -> Int[Array, "b c"]:
        """The condition that says nothing, in the shape of another."""
        return conditions.null_condition(condition, self.num_ids)

    def drop_condition(self, condition: Int[Array, "b c"]) -> Int[Array, "b c"]:
        """The null condition for some of the images (rng stream "dropout")."""
        if not self.condition_dropout or not condition.shape[1]:
            return condition
        key = self.make_rng("dropout")
        return conditions.drop_condition(key, condition, self.num_ids, self.condition_dropout)


def init_prior(prior: Prior, tokens: int, length: int, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of a prior.

    Args:
        prior: the model.
        tokens: n of the tokens of an image.
        length: c of its condition.
        key: a random key.
    """
    keys = split_by_name(key, ("params", *prior.rngs))
    positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (1, tokens))
    blank = Tokens(jnp.zeros((1, tokens), jnp.int32), positions, prior.grid)
    condition = jnp.zeros((1, length), jnp.int32)
    return dict(prior.init(keys, blank, condition, train=False, method="loss"))
