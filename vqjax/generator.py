"""The trained models of a run, and images from them: for sampling, editing, evaluation."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8
from tqdm import tqdm

from vqjax import editing
from vqjax.samplers.blockwise import BlockwiseSampling, sample
from vqjax.samplers.rejection import Rejection, best, candidate_labels, score
from vqjax.tokens import Tokens
from vqjax.training.experiment import build_models
from vqjax.training.loop import placed
from vqjax.training.prior_stage import condition_of, prior_shapes, tokenizer_shapes
from vqjax.training.sharding import batch_sharding, make_mesh, to_host
from vqjax.training.stage import to_float
from vqjax.training.state import random_key
from vqjax.training.weights import load_weights
from vqjax.training.workdir import read_class_names, read_config, trained_stage

Images = UInt8[np.ndarray, "n H W 3"]


class Generator:
    """Tokenizer and prior of a run; weights are read when they are first asked for.

    Attributes:
        config: what the run was made with.
        class_names: of its data set.
        tokenizer: the model of stage 1.
        prior: the model of stage 2.
        mesh: where the weights lie.
    """

    def __init__(self, workdir: Path, mesh: Mesh | None = None):
        """Reads the config of a run; without a mesh, all devices share each batch.

        Raises:
            InputError: the folder is not that of a run.
        """
        self.workdir = workdir
        self.config = read_config(workdir)
        self.class_names = read_class_names(workdir)
        self.tokenizer, self.prior = build_models(self.config, len(self.class_names))
        self.mesh = mesh or make_mesh({"data": -1})

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
        return load_weights(*where, placed(shapes, self.mesh))

    def generate(
        self,
        labels: Int[np.ndarray, " n"],
        spec: BlockwiseSampling,
        *,
        seed: int,
        batch_size: int,
        tile: int = 0,
        edit: editing.Edit | None = None,
        composite: bool = True,
        rejection: Rejection | None = None,
    ) -> Iterator[Images]:
        """One image for every label, batch by batch.

        Args:
            labels: classes; `prior.null_id` for none in particular.
            spec: how tokens are sampled; its grid is that of the edit, if there is one.
            seed: another one gives other images.
            batch_size: how many images are made at a time, rounded up to what the devices share.
            tile: see `Tokenizer.decode`.
            edit: what is given of the images; without it, nothing is.
            composite: take the pixels outside the hole of the edit from its canvas.
            rejection: draw more images than wanted and keep the best of each class; only their
                tokens are kept while they are drawn.
        """
        drawn = candidate_labels(labels, rejection.acceptance) if rejection else labels
        batch = -(-min(batch_size, len(drawn)) // self.mesh.size) * self.mesh.size
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

        def paint(tokens: Tokens) -> UInt8[Array, "m H W 3"]:
            images = editing.decode(self.tokenizer, variables[0], tokens, tile)
            return editing.composite(images, edit) if edit and composite else images

        if rejection is None:
            for start, rows, count in _batches(labels, batch, "sampling"):
                yield to_host(paint(draw(rows, start)))[:count]
            return

        codes, scores = [], []
        for start, rows, count in _batches(drawn, batch, "candidates"):
            tokens = draw(rows, start)
            codes.append(to_host(tokens.codes)[:count])
            logits = rejection.classify(to_float(paint(tokens)))
            scores.append(to_host(score(logits, jnp.asarray(rows), rejection.by))[:count])
        kept = np.empty(len(labels), np.int32)
        # The best come in ascending order of the class: back to that of the labels.
        scored = jnp.asarray(np.concatenate(scores)), jnp.asarray(drawn)
        kept[np.argsort(labels, kind="stable")] = best(*scored, np.bincount(labels), len(labels))
        for _, rows, count in _batches(np.concatenate(codes)[kept], batch, "decoding"):
            code_map = rows.reshape(batch, *spec.grid)
            yield to_host(paint(Tokens.dense(jax.device_put(code_map, share))))[:count]


def _batches(
    rows: Int[np.ndarray, "n *c"], batch: int, what: str
) -> Iterator[tuple[int, Int[np.ndarray, "{batch} *c"], int]]:
    """Start, rows (the last ones repeat to fill the batch) and their number, with a bar."""
    for start in tqdm(range(0, len(rows), batch), desc=what, unit="batch"):
        part = rows[start : start + batch]
        yield start, np.resize(part, (batch, *part.shape[1:])), len(part)
