"""What the priors of one transformer share: its settings, and the same without a scan."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from vqjax.nn.attention import Implementation
from vqjax.nn.transformer import Transformer, check_heads, unrolled
from vqjax.priors.base import Prior
from vqjax.settings import Range, setting

AnyPrior = TypeVar("AnyPrior", bound="TransformerPrior")


class TransformerPrior(Prior):
    """A prior whose submodule `transformer` is made by `make_transformer`."""

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

    def make_transformer(self, norm: Literal["pre", "post"]) -> Transformer:
        """The transformer of these settings."""
        return Transformer(
            self.num_layers,
            self.num_heads,
            dropout=self.dropout,
            norm=norm,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            implementation=self.implementation,
        )

    def unrolled(
        self: AnyPrior, variables: Mapping[str, Any]
    ) -> tuple[AnyPrior, Mapping[str, Any]]:
        """The same prior without a scan over its layers, for a loop around it."""
        if not self.scan:
            return self, variables
        params = variables["params"]
        params = {**params, "transformer": unrolled(params["transformer"])}
        return self.clone(scan=False), {**variables, "params": params}
