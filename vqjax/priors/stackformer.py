"""Stackformer: the next code, then where it lies, each by a transformer of its own.

Source: paper 002, section 3.3 and figure 2b; sizes from section 4.1. Heads, norms and dropout are
those of the authors' code, which is VQGAN's (Esser et al. 2021).
"""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.losses.cross_entropy import cross_entropy
from vqjax.nn.linear import Dense, Embed, add_parameter
from vqjax.nn.positions import CellEmbedding, SequenceEmbedding
from vqjax.nn.transformer import INITIALIZER, Cache
from vqjax.priors.base import Sums
from vqjax.priors.condition import ConditionEmbedding, padding_first
from vqjax.priors.transformer import TransformerPrior, seen_before
from vqjax.settings import Range, setting
from vqjax.tokens import Tokens


class Caches(NamedTuple):
    """What both transformers have computed of a sequence.

    Attributes:
        code: of the Code-Transformer.
        position: of the Position-Transformer.
    """

    code: Cache
    position: Cache


class Head(nn.Module):
    """A LayerNorm and a linear layer to logits, in float32.

    Attributes:
        num_classes: how many logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b k"]:
        """The logits of each vector."""
        x = nn.LayerNorm(dtype="float32", name="norm")(x)
        return Dense(self.num_classes, kernel_init=INITIALIZER, name="linear")(x)


class StackformerPrior(TransformerPrior):
    """p(code | tokens before it) p(position | tokens before it, its code), in raster order.

    The sequence of the Code-Transformer is [condition, all tokens but the last]; without a
    condition the code <sos>, code K, stands in front. Each has the sum of three learned vectors: of
    its code or id; of the cell that it lies at, or of the position <sos> in front; and of its place
    in the sequence. From the last place in front on, each predicts the next code. What the
    Code-Transformer makes of these places, before the norm of its head, and the vector of the code
    that comes next are the sequence of the Position-Transformer, which predicts that code's cell.

    The number of tokens is that of the tokens that the parameters were made with: every image has
    so many, or fewer, the rest of no cell.
    """

    token_kind: ClassVar = "any"
    rngs: ClassVar[tuple[str, ...]] = ("dropout",)
    transformers: ClassVar[tuple[str, ...]] = ("code_transformer", "position_transformer")

    dim: int = setting(1024, "width of both transformers", Range(1))
    num_layers: int = setting(18, "depth of the Code-Transformer", Range(1))
    num_position_layers: int = setting(6, "depth of the Position-Transformer", Range(1))
    label_smoothing: float = setting(
        0.0, "of the training losses; held-out ones are never smoothed", Range(0, 1, below=True)
    )

    def setup(self) -> None:
        """Declares the embeddings, the transformers and the heads."""
        # Where there is a condition, <sos> is of no use.
        codes = self.num_codes if self.num_ids else self.num_codes + 1
        self.code_embedding = Embed(codes, self.dim, dtype=self.dtype, embedding_init=INITIALIZER)
        if self.num_ids:
            self.condition_embedding = ConditionEmbedding(self.num_ids, self.dim, self.dtype)
        self.position = CellEmbedding(self.grid, self.dim)
        self.sos_position = self.param("sos_position", INITIALIZER, (self.dim,))
        self.sequence_position = SequenceEmbedding(self.dim)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.code_transformer = self.make_transformer("pre", final_norm=False)
        self.position_transformer = self.make_transformer(
            "pre", self.num_position_layers, final_norm=False
        )
        self.code_head = Head(self.num_codes)
        self.position_head = Head(self.grid[0] * self.grid[1])

    def __call__(
        self,
        codes: Int[Array, "b n"],
        positions: Int[Array, "b n"],
        condition: Int[Array, "b c"],
        train: bool = False,
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n cells"]]:
        """Logits of every code and of every position, in one pass.

        Args:
            codes: of all tokens in raster order; those of no cell come last.
            positions: theirs; the last one is not looked at.
            condition: see `vqjax.priors.condition`.
            train: dropout on (rng stream "dropout").
        """
        front, visible = self._front(condition)
        # Eq. 10.
        x = jnp.concatenate([front, self._embed(codes[:, :-1], positions[:, :-1])], axis=1)
        length, places = x.shape[1], jnp.arange(x.shape[1])
        x = add_parameter(x, self.sequence_position(length))
        x = self.embedding_dropout(x, deterministic=not train)
        x = self.code_transformer(x, seen_before(visible, places, length), train)
        hidden = x[:, front.shape[1] - 1 :]
        y = self._with_current(hidden, codes)
        y = self.position_transformer(y, self._causal(jnp.arange(y.shape[1]), y.shape[1]), train)
        return self.code_head(hidden), self.position_head(y)

    def num_tokens(self, condition: Int[Array, "b c"]) -> int:
        """How many tokens an image has, by the parameters."""
        return len(self.sequence_position()) - self._front(condition)[0].shape[1] + 1

    def begin(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b k"], Float[Array, "b dim"], Caches]:
        """Logits of the first code, what `locate` takes of it, and the caches to go on with.

        Args:
            condition: see `vqjax.priors.condition`.
        """
        front, visible = self._front(condition)
        batch, length = len(front), len(self.sequence_position())
        caches = Caches(
            self.code_transformer.empty_cache(batch, length, self.dim),
            self.position_transformer.empty_cache(batch, self.num_tokens(condition), self.dim),
        )
        return self._extend(front, visible, caches, jnp.int32(0))

    def locate(
        self,
        hidden: Float[Array, "b dim"],
        codes: Int[Array, "b"],
        index: Int[Array, ""],
        caches: Caches,
    ) -> tuple[Float[Array, "b cells"], Caches]:
        """Logits of the position of the current code.

        Args:
            hidden: that came with the logits of the code.
            codes: the current code.
            index: its number in the sequence of codes, [0, n).
            caches: of `begin`, or of the step before.
        """
        y = self._with_current(hidden[:, None], codes[:, None])
        length = jax.tree.leaves(caches.position)[0].shape[-1]
        mask = self._causal(index[None], length)
        y, cache = self.position_transformer.extend(y, mask, caches.position, index)
        return self.position_head(y[:, 0]), caches._replace(position=cache)

    def advance(
        self,
        codes: Int[Array, "b"],
        positions: Int[Array, "b"],
        index: Int[Array, ""],
        condition: Int[Array, "b c"],
        caches: Caches,
    ) -> tuple[Float[Array, "b k"], Float[Array, "b dim"], Caches]:
        """Logits of the next code, what `locate` takes of it, and the caches.

        Args:
            codes: the current code.
            positions: its position.
            index: its number in the sequence of codes, [0, n - 1).
            condition: that of `begin`.
            caches: of `locate`.
        """
        front, visible = self._front(condition)
        x = self._embed(codes[:, None], positions[:, None])
        return self._extend(x, visible, caches, front.shape[1] + index)

    def _extend(
        self,
        x: Float[Array, "b q dim"],
        visible: Bool[Array, "b f"],
        caches: Caches,
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "b k"], Float[Array, "b dim"], Caches]:
        """What the Code-Transformer makes of the last of the places from `start` on, which are `x`.

        `x` is without the vectors of these places.
        """
        table = self.sequence_position()
        mask = seen_before(visible, start + jnp.arange(x.shape[1]), len(table))
        x = add_parameter(x, jax.lax.dynamic_slice_in_dim(table, start, x.shape[1]))
        x, cache = self.code_transformer.extend(x, mask, caches.code, start)
        hidden = x[:, -1]
        return self.code_head(hidden), hidden, caches._replace(code=cache)

    def _front(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b f dim"], Bool[Array, "b f"]]:
        """What is in front of the codes, and which of it may be seen."""
        if self.num_ids:
            x, visible = padding_first(*self.condition_embedding(condition))
        else:
            x = self.code_embedding(jnp.full((len(condition), 1), self.num_codes))
            visible = jnp.ones(x.shape[:2], bool)
        return add_parameter(x, self.sos_position), visible

    def _embed(
        self, codes: Int[Array, "b q"], positions: Int[Array, "b q"]
    ) -> Float[Array, "b q dim"]:
        """Vectors of tokens; one of no cell, which no other sees, has that of any."""
        cells = jnp.take(self.position(), positions, axis=0, mode="clip")
        return self.code_embedding(codes) + cells.astype(self.dtype)

    def _with_current(
        self, hidden: Float[Array, "b q dim"], codes: Int[Array, "b q"]
    ) -> Float[Array, "b q dim"]:
        """The input of the Position-Transformer (Eq. 12)."""
        return hidden + self.code_embedding(codes)

    def _causal(self, places: Int[Array, "q"], length: int) -> Bool[Array, "1 1 q n"]:
        """What places of a sequence with nothing in front see."""
        return seen_before(jnp.ones((1, 0), bool), places, length)

    def loss(
        self, tokens: Tokens, condition: Int[Array, "b c"], train: bool
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of every code and of every position, as if no cell were taken yet.

        Args:
            tokens: in any order; the model has them in raster order.
            condition: see `vqjax.priors.condition`.
            train: label smoothing, dropout, of the condition too (rng stream "dropout").

        Returns:
            The mean over all tokens of the batch in nats; their number, without those of no cell;
            and a dict with the same without label smoothing, "nats_per_token", of codes and of
            positions alone, "code_nats" and "position_nats", and the shares of the likeliest,
            "code_accuracy" and "position_accuracy".

        Source: paper 002, Eq. 14.
        """
        if train:
            condition = self.drop_condition(condition)
        terms, loss, present = self._terms(tokens, condition, train)
        number = jnp.sum(present).astype(jnp.float32)
        terms = jax.lax.stop_gradient(terms)
        means = {name: _sum(x, present) / number for name, x in terms.items()}
        return _sum(loss, present) / number, number, means

    def held_out(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        valid: Bool[Array, "b"],
        key: Key[Array, ""],
    ) -> Sums:
        """The loss, "nats_per_token", its two parts, and the accuracies, named as in `loss`."""
        terms, _, present = self._terms(tokens, condition, False)
        counted = present & valid[:, None]
        number = jnp.sum(counted).astype(jnp.float32)
        return {name: (_sum(x, counted), number) for name, x in terms.items()}

    def _terms(
        self, tokens: Tokens, condition: Int[Array, "b c"], train: bool
    ) -> tuple[dict[str, Array], Float[Array, "b n"], Bool[Array, "b n"]]:
        """By name of each metric its value at every token; the loss; which tokens there are."""
        tokens = tokens.in_raster_order()
        present, codes = tokens.present, tokens.codes
        code_logits, position_logits = self(codes, tokens.positions, condition, train)
        # Of no cell, there is none that would be right.
        positions = jnp.where(present, tokens.positions, 0)
        smoothing = self.label_smoothing if train else 0.0
        loss = cross_entropy(code_logits, codes, smoothing)  # Eq. 11
        loss += cross_entropy(position_logits, positions, smoothing)  # Eq. 13
        code_nats = cross_entropy(code_logits, codes, 0.0)
        position_nats = cross_entropy(position_logits, positions, 0.0)
        terms = {
            "nats_per_token": code_nats + position_nats,
            "code_nats": code_nats,
            "position_nats": position_nats,
            "code_accuracy": jnp.argmax(code_logits, axis=-1) == codes,
            "position_accuracy": jnp.argmax(position_logits, axis=-1) == positions,
        }
        return terms, loss, present


def _sum(x: Array, counted: Bool[Array, "b n"]) -> Float[Array, ""]:
    """Over the tokens that count."""
    return jnp.sum(jnp.where(counted, x, 0), dtype=jnp.float32)
