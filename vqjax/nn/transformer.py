"""The transformer of every prior: pre- or post-norm, scanned layers, rematerialisation."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float

from vqjax.errors import check_fields
from vqjax.nn.attention import Implementation, MultiHeadAttention
from vqjax.nn.linear import Dense

INITIALIZER = nn.initializers.normal(0.02)


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
        self, x: Float[Array, "b n dim"], mask: Bool[Array, "..."] | None, train: bool
    ) -> tuple[Float[Array, "b n dim"], None]:
        """One layer; the None is what a scan over layers stacks."""
        pre = self.norm == "pre"
        norm_attention = nn.LayerNorm(dtype=self.dtype, name="norm_attention")
        norm_mlp = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")

        y = MultiHeadAttention(
            self.num_heads, self.dtype, INITIALIZER, self.implementation, name="attention"
        )(norm_attention(x) if pre else x, mask=mask)
        x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        x = x if pre else norm_attention(x)

        y = MLP(self.mlp_ratio * x.shape[-1], self.dropout, self.dtype, INITIALIZER, name="mlp")(
            norm_mlp(x) if pre else x, train
        )
        x = x + y
        return (x if pre else norm_mlp(x)), None


class Transformer(nn.Module):
    """A stack of transformer blocks.

    Attributes:
        num_layers: number of blocks.
        num_heads: attention heads; divides the width of the input.
        mlp_ratio: hidden width of the MLP over the width of the input.
        dropout: rate after attention and MLP, in training (rng stream "dropout").
        norm: "pre" normalises each branch's input and the final output (GPT-2); "post" normalises
            after each residual sum (BERT, MaskGIT).
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

    @nn.compact
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
                in_axes=(nn.broadcast, nn.broadcast),
                length=self.num_layers,
            )
            x, _ = stack(*fields, name="blocks")(x, mask, train)
        else:
            for i in range(self.num_layers):
                x, _ = block(*fields, name=f"block_{i}")(x, mask, train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x) if self.norm == "pre" else x


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


def check_heads(model: Any) -> None:
    """Checks that a model's field `num_heads` divides its `dim`.

    Raises:
        FieldError: it does not.
    """
    divides = model.dim % model.num_heads == 0
    check_fields(model, [("num_heads", divides, f"a divisor of dim={model.dim}")])
