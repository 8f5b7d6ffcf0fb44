"""The trained models of a run, and images from them: for sampling, editing, evaluation."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from vqjax.generation import editing
from vqjax.parallel import batch_sharding, make_mesh, to_host
from vqjax.pixels import to_float
from vqjax.runs.build import build_models
from vqjax.runs.weights import load_weights
from vqjax.runs.workdir import read_class_names, read_config, trained_stage
from vqjax.samplers.multigrained import BlockwiseSampling, sample
from vqjax.samplers.rejection import Rejection, candidate_labels, keep_best, score
from vqjax.tokens import Tokens
from vqjax.training.loop import placed
from vqjax.training.prior_stage import condition_of, prior_shapes, tokenizer_shapes
from vqjax.training.state import random_key

Images = UInt8[np.ndarray, "n H W 3"]


class Generator:
    """Tokenizer and prior of a run; weights are read when they are first asked for.

    Attributes:
        config: what the run was made with.
        class_names: of its data set.
        tokenizer: the model of stage 1.
        prior: the model of stage 2.
        mesh: where the weights lie.
        steps: by stage, which step the weights that were read are of.
    """

    def __init__(self, workdir: epath.PathLike, mesh: Mesh | None = None):
        """Reads the config of a run; without a mesh, all devices share each batch.

        Raises:
            InputError: the folder is not that of a run.
        """
        self.workdir = epath.Path(workdir)
        self.config = read_config(workdir)
        self.class_names = read_class_names(workdir)
        self.tokenizer, self.prior = build_models(self.config, len(self.class_names))
        self.mesh = mesh or make_mesh({"data": -1})
        self.steps: dict[str, int] = {}

    @cached_property
    def tokenizer_variables(self) -> Any:
        """The trained tokenizer; raises InputError if there is none."""
        return self._load(
            "tokenizer", tokenizer_shapes(self.tokenizer, self.config.data.resolution)
        )

    @cached_property
    def prior_variables(self) -> Any:
        """The trained prior; raises InputError if there is none."""
        return self._load("prior", prior_shapes(self.prior))

    def _load(self, stage: str, shapes: Any) -> Any:
        where = trained_stage(self.config, self.workdir, stage)
        variables, self.steps[stage] = load_weights(*where, placed(shapes, self.mesh))
        return variables

    def prepare(
        self,
        count: int,
        spec: BlockwiseSampling,
        *,
        seed: int,
        batch_size: int,
        tile: int = 0,
        edit: editing.Edit | None = None,
        composite: bool = True,
        rounded: bool = True,
    ) -> "Drawing":
        """What draws images, one batch like the other.

        Args:
            count: how many images are wanted in all.
            spec: how tokens are sampled; its grid is that of the edit, if there is one.
            seed: another one gives other images.
            batch_size: how many images are made at a time, rounded up to what the devices share;
                not more than are wanted.
            tile: see `Tokenizer.decode`.
            edit: what is given of the images; without it, nothing is.
            composite: take the pixels outside the hole of the edit from its canvas.
            rounded: images of 8 bits; else in [-1, 1].
        """
        batch = -(-min(batch_size, count) // self.mesh.size) * self.mesh.size
        share = batch_sharding(self.mesh)
        variables = self.tokenizer_variables, self.prior_variables
        if edit is None:
            known = jnp.zeros((batch, spec.grid[0] * spec.grid[1]), jnp.int32)
            known_mask = jnp.zeros_like(known, bool)
        else:
            known, known_mask = editing.known_tokens(self.tokenizer, variables[0], edit, batch)
        known, known_mask = jax.device_put((known, known_mask), share)

        def draw(rows: Int[np.ndarray, " m"], start: int) -> Tokens:
            condition = condition_of(self.prior, jax.device_put(rows, share))
            key = random_key(seed, "sample", start)
            apply = self.prior.apply
            return sample(apply, variables[1], key, condition, known, known_mask, spec)

        def paint(tokens: Tokens) -> Array:
            images = editing.decode(self.tokenizer, variables[0], tokens, tile, rounded)
            return editing.composite(images, edit) if edit and composite else images

        def place(codes: Int[np.ndarray, "m n"]) -> Tokens:
            return Tokens.dense(jax.device_put(codes.reshape(batch, *spec.grid), share))

        return Drawing(batch, draw, paint, place)

    def generate(
        self,
        labels: Int[np.ndarray, " n"],
        spec: BlockwiseSampling,
        *,
        batch_size: int,
        rejection: Rejection | None = None,
        **options: Any,
    ) -> Iterator[Images]:
        """One image for every label, batch by batch.

        Args:
            labels: classes; `prior.null_id` for none in particular.
            spec: how tokens are sampled.
            batch_size: how many images are made at a time.
            rejection: draw more images than wanted and keep the best of each class; only their
                tokens are kept while they are drawn.
            options: further ones of `prepare`.
        """
        candidates = candidate_labels(labels, rejection.acceptance) if rejection else labels
        drawing = self.prepare(len(candidates), spec, batch_size=batch_size, **options)
        if rejection is None:
            yield from drawing.images(labels)
            return
        codes, scores = zip(*drawing.candidates(candidates, rejection), strict=True)
        kept = keep_best(np.concatenate(scores), candidates, labels)
        yield from drawing.decoded(np.concatenate(codes)[kept])


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Images batch by batch, from any batch on: each depends on its place alone.

    Attributes:
        batch: images in each.
        draw: tokens from labels, of the batch that starts with an image.
        paint: images from tokens.
        place: tokens on the devices from codes on the host.
    """

    batch: int
    draw: Callable[[Int[np.ndarray, " m"], int], Tokens]
    paint: Callable[[Tokens], Array]
    place: Callable[[Int[np.ndarray, "m n"]], Tokens]

    def images(self, labels: Int[np.ndarray, " n"], first_batch: int = 0) -> Iterator[np.ndarray]:
        """One image for every label."""
        for start, rows, count in self._batches(labels, "sampling", first_batch):
            yield to_host(self.paint(self.draw(rows, start)))[:count]

    def candidates(
        self, labels: Int[np.ndarray, " n"], rejection: Rejection, first_batch: int = 0
    ) -> Iterator[tuple[Int[np.ndarray, "m n"], Float[np.ndarray, " m"]]]:
        """Codes of an image for every label, and how well each passes."""
        for start, rows, count in self._batches(labels, "candidates", first_batch):
            tokens = self.draw(rows, start)
            images = self.paint(tokens)
            floats = to_float(images) if images.dtype == jnp.uint8 else images
            scores = score(rejection.classify(floats), jnp.asarray(rows), rejection.by)
            yield to_host(tokens.codes)[:count], to_host(scores)[:count]

    def decoded(self, codes: Int[np.ndarray, "m n"], first_batch: int = 0) -> Iterator[np.ndarray]:
        """The images of codes."""
        for _, rows, count in self._batches(codes, "decoding", first_batch):
            yield to_host(self.paint(self.place(rows)))[:count]

    def _batches(
        self, rows: Int[np.ndarray, "n *c"], what: str, first_batch: int
    ) -> Iterator[tuple[int, Int[np.ndarray, "m *c"], int]]:
        """Start, rows (the last ones repeat to fill the batch) and their number, with a bar."""
        starts = range(0, len(rows), self.batch)
        bar = tqdm(total=len(starts), initial=first_batch, desc=what, unit="batch")
        with bar:
            for start in starts[first_batch:]:
                part = rows[start : start + self.batch]
                yield start, np.resize(part, (self.batch, *part.shape[1:])), len(part)
                bar.update()
