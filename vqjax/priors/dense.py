"""What the priors of a whole code map share: embeddings, one transformer and a tied head.

Source: paper 001, table 8; the embeddings and the head are MaskGIT's (Chang et al. 2022), which are
BERT's.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.nn.linear import Dense, Embed, add_parameter
from vqjax.nn.positions import CellEmbedding
from vqjax.nn.transformer import INITIALIZER
from vqjax.priors.condition import ConditionEmbedding
from vqjax.priors.transformer import TransformerPrior
from vqjax.settings import setting


class DensePrior(TransformerPrior):
    """A transformer over the condition and all codes of an image, in raster order.

    A code's vector is that of the code and that of its place, normalised where `norm` is "post".
    The head is a linear layer, a GELU, a LayerNorm, and the product with the embedding of each
    code, with a bias.
    """

    known_tokens: ClassVar[bool] = True
    # Codes with an embedding that no tokenizer makes.
    special_codes: ClassVar[int] = 0

    norm: Literal["pre", "post"] = setting(
        "post", "LayerNorm before each layer (GPT-2) or after it (MaskGIT), see `Transformer`"
    )

    def setup(self) -> None:
        """Declares the embeddings, the transformer and the head."""
        self.code_embedding = Embed(
            self.num_codes + self.special_codes,
            self.dim,
            dtype=self.dtype,
            embedding_init=INITIALIZER,
        )
        self.position = CellEmbedding(self.grid, self.dim)
        if self.num_ids:
            self.condition_embedding = ConditionEmbedding(self.num_ids, self.dim, self.dtype)
        if self.norm == "post":
            self.embedding_norm = nn.LayerNorm(dtype=self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.transformer = self.make_transformer(self.norm)
        self.head_linear = Dense(self.dim, dtype=self.dtype, kernel_init=INITIALIZER)
        self.head_norm = nn.LayerNorm(dtype="float32")
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (self.num_codes,))

    def front(
        self, condition: Int[Array, "b c"]
    ) -> tuple[Float[Array, "b f dim"], Bool[Array, "b f"]]:
        """What is in front of the codes, without its positions, and which of it may be seen."""
        if self.num_ids:
            return self.condition_embedding(condition)
        return jnp.zeros((len(condition), 0, self.dim), self.dtype), jnp.ones(condition.shape, bool)

    def embed(
        self, x: Float[Array, "b n dim"], positions: Float[Array, "n dim"], train: bool
    ) -> Float[Array, "b n dim"]:
        """The input of the transformer: vectors with their positions, normalised, with dropout."""
        x = add_parameter(x, positions)
        if self.norm == "post":
            x = self.embedding_norm(x)
        return self.embedding_dropout(x, deterministic=not train)

    def logits(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b k"]:
        """Logits of the codes, in float32, from the output of the transformer."""
        h = self.head_norm(nn.gelu(self.head_linear(x)))
        return self.code_embedding.attend(h)[..., : self.num_codes] + self.head_bias
