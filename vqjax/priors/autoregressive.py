"""The autoregressive prior: every code from those before it in raster order.

Source: paper 001, section 3.1 and table 8; VQGAN (Esser et al. 2021), section 3.2.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.losses.cross_entropy import cross_entropy
from vqjax.nn.transformer import INITIALIZER, Cache
from vqjax.priors.base import Sums
from vqjax.priors.condition import padding_first
from vqjax.priors.dense import DensePrior
from vqjax.priors.transformer import seen_before
from vqjax.tokens import Tokens


class AutoregressivePrior(DensePrior):
    """p(code | codes before it in raster order, condition), by a transformer that sees only these.

    The sequence is [condition, all codes but the last]; without a condition a learned vector stands
    in front. From the last place of the condition on, each predicts the next code, and has the
    position of the cell that it predicts. Padding of a condition comes first, so that its last id
    is at that place.
    """

    rngs: ClassVar[tuple[str, ...]] = ("dropout",)

    def setup(self) -> None:
        """Declares the embeddings, the transformer and the head."""
        super().setup()
        if not self.num_ids:
            self.start = self.param("start", INITIALIZER, (1, self.dim))

    def front(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b f dim"], Bool[Array, "b f"]]:
        """The condition, or else what says that the image begins; and which of it may be seen."""
        if self.num_ids:
            x, visible = super().front(condition)
            return padding_first(x, visible)
        shape = (len(condition), 1)
        start = jnp.broadcast_to(self.start, (*shape, self.dim)).astype(self.dtype)
        return start, jnp.ones(shape, bool)

    def __call__(
        self, codes: Int[Array, "b n"], condition: Int[Array, "b c"], train: bool = False
    ) -> Float[Array, "b n k"]:
        """Logits of every code from those before it, in one pass.

        Args:
            codes: of all cells in raster order; the last one is not looked at.
            condition: see `vqjax.priors.condition`.
            train: dropout on (rng stream "dropout").
        """
        front, visible = self.front(condition)
        x = jnp.concatenate([front, self.code_embedding(codes[:, :-1])], axis=1)
        x = self.embed(x, self._positions(front.shape[1]), train)
        mask = seen_before(visible, jnp.arange(x.shape[1]), x.shape[1])
        x = self.transformer(x, mask, train)
        return self.logits(x[:, front.shape[1] - 1 :])

    def begin(self, condition: Int[Array, "b c"]) -> tuple[Float[Array, "b k"], Cache]:
        """Logits of the first code, and the cache with which `advance` goes on.

        Args:
            condition: see `vqjax.priors.condition`.
        """
        front, _ = self.front(condition)
        length = self._positions(front.shape[1]).shape[0]
        cache = self.transformer.empty_cache(len(front), length, self.dim)
        return self._extend(front, condition, cache, jnp.int32(0))

    def advance(
        self,
        codes: Int[Array, "b"],
        index: Int[Array, ""],
        condition: Int[Array, "b c"],
        cache: Cache,
    ) -> tuple[Float[Array, "b k"], Cache]:
        """Logits of the next code, from the cache of all before the current one.

        Args:
            codes: the current code.
            index: its cell, [0, n - 1).
            condition: that of `begin`.
            cache: of `begin`, or of the step before.
        """
        x = self.code_embedding(codes)[:, None]
        start = self.front(condition)[0].shape[1] + index
        return self._extend(x, condition, cache, start)

    def _extend(
        self,
        x: Float[Array, "b q dim"],
        condition: Int[Array, "b c"],
        cache: Cache,
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "b k"], Cache]:
        """Logits at the last of the places from `start` on, which `x` are the vectors of."""
        _, visible = self.front(condition)
        positions = self._positions(visible.shape[1])
        mask = seen_before(visible, start + jnp.arange(x.shape[1]), len(positions))
        positions = jax.lax.dynamic_slice_in_dim(positions, start, x.shape[1])
        x, cache = self.transformer.extend(self.embed(x, positions, False), mask, cache, start)
        return self.logits(x[:, -1]), cache

    def _positions(self, front: int) -> Float[Array, "n dim"]:
        """The positions of the sequence: of what is in front of the codes, the last has one."""
        return jnp.pad(self.position(), ((front - 1, 0), (0, 0)))

    def loss(
        self, tokens: Tokens, condition: Int[Array, "b c"], train: bool
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of every code.

        Args:
            tokens: dense tokens.
            condition: see `vqjax.priors.condition`.
            train: label smoothing, dropout, of the condition too (rng stream "dropout").

        Returns:
            The mean over all codes of the batch in nats, their number, and a dict with
            "nats_per_token", the same without label smoothing, and "accuracy".

        Source: paper 001, section 3.1.
        """
        if train:
            condition = self.drop_condition(condition)
        logits, codes = self._logits(tokens, condition, train)
        smoothing = self.label_smoothing if train else 0.0
        loss = jnp.mean(cross_entropy(logits, codes, smoothing))
        terms = _terms(logits, codes)
        metrics = {name: jnp.mean(jax.lax.stop_gradient(x)) for name, x in terms.items()}
        return loss, jnp.float32(codes.size), metrics

    def held_out(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        valid: Bool[Array, "b"],
        key: Key[Array, ""],
    ) -> Sums:
        """Cross-entropy, "nats_per_token", and "accuracy", how many codes are the likeliest."""
        logits, codes = self._logits(tokens, condition, False)
        count = jnp.sum(valid) * jnp.float32(codes.shape[1])
        terms = _terms(logits, codes)
        return {name: (jnp.sum(x * valid[:, None]), count) for name, x in terms.items()}

    def _logits(
        self, tokens: Tokens, condition: Int[Array, "b c"], train: bool
    ) -> tuple[Float[Array, "b n k"], Int[Array, "b n"]]:
        """Logits of every code, and the codes."""
        codes = tokens.code_map.reshape(tokens.codes.shape)
        return self(codes, condition, train), codes


def _terms(logits: Float[Array, "b n k"], codes: Int[Array, "b n"]) -> dict[str, Array]:
    """By name of each metric its value at every code."""
    return {
        "nats_per_token": cross_entropy(logits, codes, 0.0),
        "accuracy": jnp.argmax(logits, axis=-1) == codes,
    }
