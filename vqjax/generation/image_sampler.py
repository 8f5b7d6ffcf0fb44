"""Images from a prior, batch by batch: each depends on the seed and its place alone."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from vqjax.errors import InputError
from vqjax.generation import editing
from vqjax.generation.codec import decode
from vqjax.parallel import batch_sharding, to_host
from vqjax.pixels import ensure_float
from vqjax.priors import Prior
from vqjax.random_keys import random_key
from vqjax.runs.sampling import Sampling
from vqjax.samplers.rejection import Rejection, score
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens

Conditions = Int[np.ndarray, "n c"]
# Of one batch, of 8 bits or in [-1, 1].
Images = UInt8[np.ndarray, "b H W 3"] | Float[np.ndarray, "b H W 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """A tokenizer and a prior with their weights.

    Attributes:
        tokenizer: that decodes.
        tokenizer_variables: its variables.
        prior: that draws tokens.
        prior_variables: its variables.
        sample: function of the prior's sampler, see `vqjax.samplers`.
        mesh: devices that share a batch.
    """

    tokenizer: Tokenizer
    tokenizer_variables: Any
    prior: Prior
    prior_variables: Any
    sample: Callable[..., Tokens]
    mesh: Mesh


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSampler:
    """Models, and how images are drawn with them.

    Attributes:
        models: that draw.
        sampling: settings.
        batch: images in a batch.
        grid: latent grid (h, w) of the images.
        corner: cell of the grid at which the frame of a training image begins.
        seed: another one gives other images.
        known: tokens that are given of every image; None for none.
        edit: whose canvas the pixels outside the hole are taken from; None for none.
        rounded: images of 8 bits; else in [-1, 1].
    """

    models: Models
    sampling: Sampling
    batch: int
    grid: tuple[int, int]
    corner: tuple[int, int]
    seed: int
    known: Tokens | None
    edit: editing.Edit | None
    rounded: bool

    @classmethod
    def of(
        cls,
        models: Models,
        sampling: Sampling,
        count: int,
        *,
        seed: int = 0,
        edit: editing.Edit | None = None,
        composite: bool = True,
        rounded: bool = True,
    ) -> "ImageSampler":
        """The sampler of `count` images: a batch is no larger, and the devices share it.

        Args:
            models: that draw.
            sampling: settings.
            count: how many images are wanted in all.
            seed: another one gives other images.
            edit: a canvas whose hole is to be filled; the images have its grid.
            composite: take the pixels outside the hole from the canvas.
            rounded: images of 8 bits; else in [-1, 1].

        Raises:
            InputError: an edit, or its grid, of a prior that takes none.
        """
        prior, devices = models.prior, models.mesh.size
        batch = -(-min(sampling.generation.batch_size, count) // devices) * devices
        known, grid, corner = None, prior.grid, (0, 0)
        if edit is not None:
            _check_edit(models, edit)
            known = editing.known_tokens(models.tokenizer, models.tokenizer_variables, edit, batch)
            known = jax.device_put(known, batch_sharding(models.mesh))
            grid, corner = edit.grid, edit.corner
        canvas = edit if composite else None
        return cls(models, sampling, batch, grid, corner, seed, known, canvas, rounded)

    def tokens(self, conditions: Conditions, start: int) -> Tokens:
        """Tokens of a whole batch whose first image is image `start`."""
        key = random_key(self.seed, "sample", start)
        share = jax.device_put(conditions, batch_sharding(self.models.mesh))
        prior, variables = self.models.prior, self.models.prior_variables
        settings = self.sampling.sampler
        where = {"corner": self.corner} if prior.any_grid else {}
        return self.models.sample(
            prior, variables, key, share, self.known, settings, self.grid, **where
        )

    def pixels(self, tokens: Tokens) -> UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]:
        """Images of tokens."""
        tile = self.sampling.generation.decode_tile
        tokenizer, variables = self.models.tokenizer, self.models.tokenizer_variables
        images = decode(tokenizer, variables, tokens, tile, self.rounded)
        return editing.composite(images, self.edit) if self.edit else images

    def images(self, conditions: Conditions, first_batch: int = 0) -> Iterator[Images]:
        """One image for every condition, from a batch on."""
        for start, (rows,), count in self._batches("sampling", first_batch, conditions):
            yield to_host(self.pixels(self.tokens(rows, start)))[:count]

    def candidates(
        self, conditions: Conditions, rejection: Rejection, first_batch: int = 0
    ) -> Iterator[tuple[Int[np.ndarray, "m n"], Int[np.ndarray, "m n"], Float[np.ndarray, " m"]]]:
        """Codes and positions of an image for every condition, and its score."""
        for start, (rows,), count in self._batches("candidates", first_batch, conditions):
            tokens = self.tokens(rows, start)
            images = self.pixels(tokens)
            by_label = rejection.by == "label"
            labels = jnp.asarray(rows[:, 0] if by_label else np.zeros(len(rows), np.int32))
            scores = score(rejection.classify(ensure_float(images)), labels, rejection.by)
            columns = tokens.codes, tokens.positions, scores
            codes, positions, values = (to_host(column)[:count] for column in columns)
            yield codes, positions, values

    def decoded(
        self,
        codes: Int[np.ndarray, "m n"],
        positions: Int[np.ndarray, "m n"],
        first_batch: int = 0,
    ) -> Iterator[Images]:
        """The images of tokens, from a batch on."""
        share = batch_sharding(self.models.mesh)
        for _, rows, count in self._batches("decoding", first_batch, codes, positions):
            placed_codes, placed_positions = (jax.device_put(x, share) for x in rows)
            tokens = Tokens(placed_codes, placed_positions, self.grid)
            yield to_host(self.pixels(tokens))[:count]

    def _batches(
        self, what: str, first_batch: int, *columns: Int[np.ndarray, "n *c"]
    ) -> Iterator[tuple[int, list[np.ndarray], int]]:
        """Start, rows (the last ones repeat to fill the batch) and their number, with a bar."""
        starts = range(0, len(columns[0]), self.batch)
        with tqdm(total=len(starts), initial=first_batch, desc=what, unit="batch") as bar:
            for start in starts[first_batch:]:
                parts = [column[start : start + self.batch] for column in columns]
                filled = [np.resize(part, (self.batch, *part.shape[1:])) for part in parts]
                yield start, filled, len(parts[0])
                bar.update()


def _check_edit(models: Models, edit: editing.Edit) -> None:
    """Raises InputError if the prior cannot fill the hole of a canvas."""
    prior, name = models.prior, type(models.prior).__name__
    if not prior.known_tokens:
        raise InputError(f"the prior {name} draws whole images only, so it cannot edit one")
    if edit.grid != prior.grid and not prior.any_grid:
        height, width = (models.tokenizer.downsampling * side for side in prior.grid)
        raise InputError(
            f"the prior {name} takes images of {width}x{height} pixels only: crop or resize yours"
        )
