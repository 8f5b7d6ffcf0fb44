"""What the priors of transformers share: settings, the same without a scan, a causal mask."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vqjax.nn.attention import Implementation
from vqjax.nn.transformer import Transformer, check_heads, unrolled
from vqjax.priors.base import Prior
from vqjax.settings import Range, setting

AnyPrior = TypeVar("AnyPrior", bound="TransformerPrior")


class TransformerPrior(Prior):
    """A prior of one transformer or several, which `make_transformer` makes."""

    # The submodules that are transformers.
    transformers: ClassVar[tuple[str, ...]] = ("transformer",)

    dim: int = setting(768, "width of the transformer", Range(1))
    num_layers: int = setting(24, "its depth", Range(1))
    num_heads: int = setting(16, "its attention heads; a divisor of the width", Range(1))
    dropout: float = setting(
        0.1, "rate on the embeddings and in the transformer", Range(0, 1, below=True)
    )
    label_smoothing: float = setting(
        0.1, "of the training loss; a held-out loss is never smoothed", Range(0, 1, below=True)
    )
    scan: bool = setting(True, "one scanned layer, compiled once, see `Transformer`")
    remat: bool = setting(False, "recompute each layer in the backward pass")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters and logits are float32"
    )
    implementation: Implementation = setting("xla", "of the attention, see `vqjax.nn.attention`")

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or heads that do not divide the width.
        """
        super().__post_init__()
        check_heads(self)

    def make_transformer(
        self, norm: Literal["pre", "post"], num_layers: int | None = None, final_norm: bool = True
    ) -> Transformer:
        """A transformer of these settings; of another depth, or without a norm at its end."""
        return Transformer(
            num_layers or self.num_layers,
            self.num_heads,
            dropout=self.dropout,
            norm=norm,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            implementation=self.implementation,
            final_norm=final_norm,
        )

    def unrolled(
        self: AnyPrior, variables: Mapping[str, Any]
    ) -> tuple[AnyPrior, Mapping[str, Any]]:
        """The same prior without a scan over its layers, for a loop around it."""
        if not self.scan:
            return self, variables
        params = variables["params"]
        params = {**params, **{name: unrolled(params[name]) for name in self.transformers}}
        return self.clone(scan=False), {**variables, "params": params}


def seen_before(
    visible: Bool[Array, "b f"], places: Int[Array, "q"], length: int
) -> Bool[Array, "b 1 q n"]:
    """What places of a sequence see: themselves, and what is visible before them.

    Args:
        visible: which of the places in front may be seen; all that come after these may.
        places: those that see.
        length: n of the sequence.
    """
    after = (0, length - visible.shape[1])
    visible = jnp.pad(visible, ((0, 0), after), constant_values=True)
    keys = jnp.arange(length)
    before, own = keys < places[:, None], keys == places[:, None]
    return (before & visible[:, None] | own)[:, None]
