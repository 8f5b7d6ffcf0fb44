"""The transformer of every prior: pre- or post-norm, scanned layers, rematerialisation, a cache."""

import operator
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import check_fields
from vqjax.nn.attention import Implementation, KeyValues, MultiHeadAttention
from vqjax.nn.linear import Dense

INITIALIZER = nn.initializers.normal(0.02)

# Of all layers: stacked along the first axis where they are scanned, else one by one.
Cache: TypeAlias = KeyValues | tuple[KeyValues, ...]


class MLP(nn.Module):
    """Two linear layers with a GELU between them.

    Attributes:
        hidden_dim: width between the layers.
        dropout: rate on the output.
        dtype: compute dtype; parameters are float32.
        kernel_init: initialiser of both layers.
    """

    hidden_dim: int
    dropout: float = 0.0
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*b dim"], train: bool = False) -> Float[Array, "*b dim"]:
        """Applies the layers to the last axis; dropout (stream "dropout") in training only."""
        h = Dense(self.hidden_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="up")(x)
        h = nn.gelu(h)
        y = Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name="down")(h)
        return nn.Dropout(self.dropout)(y, deterministic=not train)


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a residual connection and a LayerNorm before or after it.

    Attributes: as of `Transformer`.
    """

    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    dtype: str = "float32"
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n dim"],
        mask: Bool[Array, "..."] | None,
        train: bool,
        cache: KeyValues | None = None,
        start: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "b n dim"], KeyValues | None]:
        """One layer, of the positions from `start` on where there is a cache; and that cache."""
        pre = self.norm == "pre"
        norm_attention = nn.LayerNorm(dtype=self.dtype, name="norm_attention")
        norm_mlp = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")

        attention = MultiHeadAttention(
            self.num_heads, self.dtype, INITIALIZER, self.implementation, name="attention"
        )
        y = norm_attention(x) if pre else x
        if cache is None:
            y = attention(y, mask=mask)
        else:
            y, cache = attention.extend(y, mask, cache, start)
        x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        x = x if pre else norm_attention(x)

        y = MLP(self.mlp_ratio * x.shape[-1], self.dropout, self.dtype, INITIALIZER, name="mlp")(
            norm_mlp(x) if pre else x, train
        )
        x = x + y
        return (x if pre else norm_mlp(x)), cache


class Transformer(nn.Module):
    """A stack of transformer blocks.

    Attributes:
        num_layers: number of blocks.
        num_heads: attention heads; divides the width of the input.
        mlp_ratio: hidden width of the MLP over the width of the input.
        dropout: rate after attention and MLP, in training (rng stream "dropout").
        norm: "pre" normalises each branch's input and the final output (GPT-2); "post" normalises
            after each residual sum (BERT, MaskGIT).
        final_norm: where `norm` is "pre", normalise the final output; False leaves it to the owner.
        scan: run the blocks as one scanned layer with stacked parameters: compile time independent
            of the depth.
        remat: recompute each block's activations in the backward pass: memory of one block instead
            of all.
        dtype: compute dtype; parameters are float32, softmax and norm statistics too.
        implementation: see `vqjax.nn.attention.attention`.
    """

    num_layers: int
    num_heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    scan: bool = True
    remat: bool = False
    dtype: str = "float32"
    implementation: Implementation = "xla"
    final_norm: bool = True

    def __call__(
        self,
        x: Float[Array, "b n dim"],
        mask: Bool[Array, "..."] | None = None,
        train: bool = False,
    ) -> Float[Array, "b n dim"]:
        """Applies all blocks.

        Args:
            x: the sequence.
            mask: True where a query may see a key; broadcasts to (b, heads, n, n).
            train: dropout on.
        """
        return self._apply_blocks(x, mask, train, None, 0)[0]

    def extend(
        self,
        x: Float[Array, "b q dim"],
        mask: Bool[Array, "..."],
        cache: Cache,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b q dim"], Cache]:
        """Applies all blocks to the next positions of a sequence; none before is computed again.

        Args:
            x: those positions.
            mask: True where one of them may see a position of the sequence; broadcasts to
                (b, heads, q, n). Of those after `x`, none may be seen.
            cache: keys and values of the positions before, or `empty_cache`.
            start: how many these are.

        Returns:
            What `__call__` would have at these positions, if none before them sees them; and the
            cache with theirs.
        """
        return self._apply_blocks(x, mask, False, cache, start)

    def empty_cache(self, batch: int, length: int, dim: int) -> Cache:
        """The cache of a sequence of which nothing is computed yet.

        Args:
            batch: b.
            length: n of the whole sequence.
            dim: its width.
        """
        layers = (self.num_layers,) if self.scan else ()
        shape = (*layers, batch * self.num_heads, dim // self.num_heads, length)
        empty = KeyValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return empty if self.scan else (empty,) * self.num_layers

    @nn.compact
    def _apply_blocks(
        self,
        x: Float[Array, "b n dim"],
        mask: Bool[Array, "..."] | None,
        train: bool,
        cache: Any,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b n dim"], Any]:
        """Of the whole sequence, where there is no cache, or of the positions from `start` on."""
        block = TransformerBlock
        if self.remat:
            # A scan's body is compiled once, so nothing can be shared between forward and
            # recomputation anyway.
            block = nn.remat(block, prevent_cse=not self.scan, static_argnums=(3,))
        fields = (
            self.num_heads,
            self.mlp_ratio,
            self.dropout,
            self.norm,
            self.dtype,
            self.implementation,
        )
        if self.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
                length=self.num_layers,
            )
            x, cache = stack(*fields, name="blocks")(x, mask, train, cache, start)
        else:
            caches = list(cache or (None,) * self.num_layers)
            for i, layer in enumerate(caches):
                x, caches[i] = block(*fields, name=f"block_{i}")(x, mask, train, layer, start)
            cache = tuple(caches)
        if self.norm == "pre" and self.final_norm:
            x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return x, cache


def unrolled(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a scanned `Transformer` as those of the same one with scan=False.

    Compiled with these, a loop around the transformer does not copy each layer's parameters out of
    the stack in every turn.
    """
    rest = {name: value for name, value in params.items() if name != "blocks"}
    number = len(jax.tree.leaves(params["blocks"])[0])
    blocks = {
        f"block_{i}": jax.tree.map(operator.itemgetter(i), params["blocks"]) for i in range(number)
    }
    return {**blocks, **rest}


def unrolled_cache(cache: Cache) -> tuple[KeyValues, ...]:
    """The cache of a scanned `Transformer` as that of the same one with scan=False."""
    if isinstance(cache, KeyValues):
        return tuple(map(KeyValues, *cache))
    return cache


def check_heads(model: Any) -> None:
    """Checks that a model's field `num_heads` divides its `dim`.

    Raises:
        FieldError: it does not.
    """
    divides = model.dim % model.num_heads == 0
    check_fields(model, [("num_heads", divides, f"a divisor of dim={model.dim}")])
