"""The masked prior: codes that are masked, all at once, from those that are not.

Source: MaskGIT (Chang et al. 2022), section 3.1; paper 001, section 3.1 and table 8.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.losses.cross_entropy import cross_entropy
from vqjax.priors.base import Sums
from vqjax.priors.dense import DensePrior
from vqjax.priors.masking import (
    MASK_RATIOS,
    MaskSchedule,
    mask_count,
    masked_fraction,
    random_mask,
)
from vqjax.settings import setting
from vqjax.tokens import Tokens


class MaskedPrior(DensePrior):
    """p(masked codes | the other codes, condition), each by itself, by a transformer that sees all.

    The sequence is [condition, codes], of which the mask token, code K, stands for those that are
    masked.
    """

    rngs: ClassVar[tuple[str, ...]] = ("mask", "dropout")
    special_codes: ClassVar[int] = 1

    mask_schedule: MaskSchedule = setting("cosine", "of the rates at which tokens are masked")

    @property
    def mask_id(self) -> int:
        """The code that stands for an unknown token."""
        return self.num_codes

    def __call__(
        self, codes: Int[Array, "b n"], condition: Int[Array, "b c"], train: bool = False
    ) -> Float[Array, "b n k"]:
        """Logits of the codes of all cells.

        Args:
            codes: of all cells in raster order; unknown ones are `mask_id`.
            condition: see `vqjax.priors.condition`.
            train: dropout on (rng stream "dropout").
        """
        front, visible = self.front(condition)
        places = front.shape[1]
        x = jnp.concatenate([front, self.code_embedding(codes)], axis=1)
        x = self.embed(x, jnp.pad(self.position(), ((places, 0), (0, 0))), train)
        visible = jnp.pad(visible, ((0, 0), (0, codes.shape[1])), constant_values=True)
        x = self.transformer(x, visible[:, None, None] if places else None, train)
        return self.logits(x[:, places:])

    def loss(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        train: bool,
        *,
        mask_ratio: float | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of masked codes, at least one an image.

        Args:
            tokens: dense tokens.
            condition: see `vqjax.priors.condition`.
            train: label smoothing, dropout, of the condition too (rng stream "dropout").
            mask_ratio: fraction of the codes that is masked, (0, 1]; None draws it by
                `mask_schedule` for each image.

        Returns:
            The mean over the masked codes of the batch in nats, their number, and a dict with
            "accuracy". Masks are drawn from the rng stream "mask".

        Source: MaskGIT, Eq. 1.
        """
        if train:
            condition = self.drop_condition(condition)
        images = len(tokens.codes)
        if mask_ratio is None:
            drawn = jax.random.uniform(self.make_rng("mask"), (images,))
            fraction = masked_fraction(drawn, self.mask_schedule)
        else:
            fraction = jnp.full((images,), mask_ratio)
        mask = self._draw_mask(self.make_rng("mask"), fraction)
        nats, hits = self._sums(mask, tokens, condition, train)
        number = jnp.sum(mask).astype(jnp.float32)
        return nats / number, number, {"accuracy": hits / number}

    def held_out(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        valid: Bool[Array, "b"],
        key: Key[Array, ""],
    ) -> Sums:
        """Nats of masked codes, "loss_at_<ratio>" where that part of each image is masked."""
        unbound, variables = self.unbind()

        def sums_at(ratio: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            fraction = jnp.full((len(tokens.codes),), ratio)
            mask = self._draw_mask(key, fraction) & valid[:, None]
            call = (mask, tokens, condition, False)
            nats, _ = unbound.apply(variables, *call, method="_sums")
            return nats, jnp.sum(mask).astype(jnp.float32)

        # One after the other in a loop, which is compiled once.
        nats, numbers = jax.lax.map(sums_at, jnp.array(MASK_RATIOS))
        return {f"loss_at_{ratio}": (nats[i], numbers[i]) for i, ratio in enumerate(MASK_RATIOS)}

    def _draw_mask(self, key: Key[Array, ""], fraction: Float[Array, "b"]) -> Bool[Array, "b n"]:
        """Masked cells: that part of each image, at least one."""
        cells = self.grid[0] * self.grid[1]
        count = mask_count(fraction, jnp.full(fraction.shape, cells))
        return random_mask(key, jnp.ones((len(fraction), cells), bool), count)

    def _sums(
        self,
        mask: Bool[Array, "b n"],
        tokens: Tokens,
        condition: Int[Array, "b c"],
        train: bool,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Over masked codes: their cross-entropy, and how many are the likeliest."""
        codes = tokens.code_map.reshape(tokens.codes.shape)
        logits = self(jnp.where(mask, self.mask_id, codes), condition, train)
        nats = cross_entropy(logits, codes, self.label_smoothing if train else 0.0)
        hits = (jnp.argmax(logits, axis=-1) == codes) & mask
        return jnp.sum(nats * mask), jnp.sum(hits).astype(jnp.float32)
