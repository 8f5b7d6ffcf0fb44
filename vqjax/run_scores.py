"""Scores of a run: of its reconstructions of a split of its data, and of its samples."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jaxtyping import Array, Int

from vqjax.data import Split, build_source, evaluation_batches
from vqjax.evaluation import reconstruction
from vqjax.evaluation.npz import write_images
from vqjax.evaluation.protocol import digest
from vqjax.evaluation.references import Reference, make_reference, padded
from vqjax.evaluation.results import result
from vqjax.evaluation.rows import Rows, fill
from vqjax.evaluation.scores import Scores, merge
from vqjax.features.lpips import load_lpips
from vqjax.generator import Drawing, Generator
from vqjax.samplers.blockwise import BlockwiseSampling
from vqjax.samplers.rejection import Classifier, Rejection, candidate_labels, keep_best
from vqjax.scoring import Scoring
from vqjax.training.sharding import replicated
from vqjax.training.stage import to_float
from vqjax.training.workdir import trained_stage

# Guesses of a classifier that are kept: for the accuracy among the first five.
_GUESSES = 5


class RunScores:
    """The numbers of a run: of its tokenizer on a split of its data, of its samples."""

    def __init__(self, workdir: Path, scoring: Scoring):
        """Reads the config of the run in `workdir`.

        Raises:
            InputError: the folder is not that of a run.
        """
        self.scoring = scoring
        self.generator = Generator(workdir, scoring.mesh)
        self.config = self.generator.config
        self._workdir = workdir

    def split_protocol(self, split: str, limit: int | None) -> dict[str, Any]:
        """Which images of a split are taken, and how they become those of the run's resolution."""
        return {
            "split": split,
            "source": self.config.data.source.name,
            "files": self._source(split).fingerprint,
            "limit": limit,
            "resolution": self.config.data.resolution,
            "crop": "central square",
            "resize": f"Lanczos, antialiased (Pillow {PIL.__version__}), where the size differs",
            "order": "permutation of numpy.random.default_rng(0)",
        }

    def reference(self, split: str, limit: int | None) -> Reference:
        """The images of a split, whose features are computed once for all runs on it.

        Args:
            split: of the run's data, "train" or "validation".
            limit: at most so many, the first ones of a fixed random order; None for all.
        """
        return make_reference(
            self.split_protocol(split, limit),
            functools.partial(self._batches, split, limit),
            self._count(split, limit),
            self.scoring.network,
            self.scoring.features,
            self.scoring.batch_size,
        )

    def reconstruction(self, split: str, limit: int | None) -> dict[str, Any]:
        """Scores the reconstructions of a split against the images themselves.

        Args:
            split: of the run's data, "train" or "validation".
            limit: at most so many, the first ones of a fixed random order; None for all.

        Raises:
            InputError: there is no trained tokenizer, or features are not finite.
        """
        scoring, tokenizer = self.scoring, self.generator.tokenizer
        resolution, loss = self.config.data.resolution, self.config.tokenizer.loss
        trained_with = loss.perceptual_net if loss.perceptual else None
        lpips = reconstruction.metric_lpips(trained_with, resolution)
        protocol = scoring.protocol("reconstruction")
        protocol["images"] = self.split_protocol(split, limit)
        protocol["tokenizer"] = self._model_protocol("tokenizer")
        protocol["perceptual"] = f"LPIPS 0.1, {lpips.net}" if lpips else None

        columns = reconstruction.columns(tokenizer, scoring.network, lpips, resolution)
        rows = scoring.rows("reconstruction", protocol, self._count(split, limit), columns)
        if not rows.finished:
            measure = reconstruction.measurer(tokenizer, scoring.network, lpips, scoring.pixels)
            variables = {
                "tokenizer": self.generator.tokenizer_variables,
                "network": scoring.network_variables,
            }
            if lpips:
                _, weights = load_lpips(lpips.net)
                variables["lpips"] = jax.device_put(weights, replicated(scoring.mesh))
            jitted = jax.jit(measure)
            fill(
                rows,
                self._batches(split, limit, rows.batches),
                lambda images: jitted(variables, scoring.place(images)),
                math.ceil(self._count(split, limit) / scoring.batch_size),
                "reconstruction",
            )
        pixels, each = reconstruction.pixel_scores(rows, tokenizer.num_codes)
        features, labels = rows["features"], rows["label"]
        original = Reference.of(rows["original_features"], labels, {"images": "their originals"})
        comparison = scoring.comparison(original)
        scores = merge(pixels, comparison.distances(features, prefix="r"))
        if scoring.by_class:
            names = self.generator.class_names
            scores.per_class = comparison.per_class(features, labels, names, each, prefix="r")
        protocol["images"]["count"] = rows.count
        return result(scores, protocol | scoring.metrics_protocol)

    def generation(
        self,
        labels: Int[np.ndarray, " n"],
        spec: BlockwiseSampling,
        reference: Reference,
        *,
        seed: int,
        tile: int,
        rejection: Rejection | None = None,
        judge: tuple[str, Classifier] | None = None,
        further: Mapping[str, Any],
        export: Path | None = None,
    ) -> dict[str, Any]:
        """Draws an image for every label and scores them against a reference.

        Args:
            labels: classes; what they are for an unconditional prior does not matter.
            spec: how tokens are sampled.
            reference: what the samples are compared with.
            seed: of the samples.
            tile: see `Tokenizer.decode`.
            rejection: what candidates have to pass, if anything.
            judge: name and logits of a classifier of the run's classes, for their accuracy.
            further: what else belongs into the protocol: how the labels were chosen, the
                classifier's name.
            export: .npz to write the samples to, which have 8 bits: `scoring.pixels` is "png".

        Raises:
            InputError: there is no trained prior or tokenizer, or features are not finite.
        """
        scoring, prior = self.scoring, self.generator.prior
        protocol = scoring.protocol("generation")
        protocol["tokenizer"] = self._model_protocol("tokenizer")
        protocol["prior"] = self._model_protocol("prior")
        protocol["sampler"] = {
            **dataclasses.asdict(spec),
            "grid": list(spec.grid),
            "decode_tile": tile,
            "seed": seed,
            "images": len(labels),
            "acceptance": rejection.acceptance if rejection else 1.0,
            **further,
        }
        candidates = candidate_labels(labels, rejection.acceptance) if rejection else labels
        drawing = self.generator.prepare(
            max(len(candidates), scoring.batch_size),
            spec,
            seed=seed,
            batch_size=scoring.batch_size,
            tile=tile,
            rounded=scoring.pixels == "png",
        )
        number = math.ceil(len(labels) / drawing.batch)
        columns = {**scoring.columns, "label": ((), np.int32)}
        if judge:
            columns["guesses"] = ((_GUESSES,), np.int32)
        if export:
            size = tuple(self.generator.tokenizer.downsampling * side for side in spec.grid)
            columns["image"] = ((*size, 3), np.uint8)
        rows = scoring.rows("samples" if export else "generation", protocol, len(labels), columns)
        watch = Stopwatch()
        if not rows.finished:
            if rejection:
                codes = self._accepted(drawing, rejection, candidates, labels, protocol)
                images = drawing.decoded(codes, rows.batches)
            else:
                images = drawing.images(labels, rows.batches)
            start = rows.batches * drawing.batch
            batches = _labelled(watch.over(images), labels[start:], drawing.batch)
            fill(rows, batches, self._measure(judge), number)
        scores = scoring.samples(rows, reference)
        if prior.num_classes:
            scores = merge(scores, self._class_scores(rows, reference, judge))
        protocol["reference"] = reference.protocol
        if export:
            shape = (rows.count, *rows["image"].shape[1:])
            parts = (rows["image"][i : i + 256] for i in range(0, rows.count, 256))
            write_images(export, parts, shape, rows["label"] if prior.num_classes else None)
        return result(scores, protocol | scoring.metrics_protocol, watch.throughput())

    def _accepted(
        self,
        drawing: Drawing,
        rejection: Rejection,
        candidates: Int[np.ndarray, " m"],
        labels: Int[np.ndarray, " n"],
        protocol: Mapping[str, Any],
    ) -> Int[np.ndarray, "n k"]:
        """Codes of the candidates that are kept; what is drawn of them outlives a kill."""
        h, w = self.generator.prior.grid
        columns = {"codes": ((h * w,), np.int32), "scores": ((), np.float32)}
        rows = self.scoring.rows("candidates", protocol, len(candidates), columns)
        number = math.ceil(len(candidates) / drawing.batch)
        if not rows.finished:
            for codes, scores in drawing.candidates(candidates, rejection, rows.batches):
                last = rows.batches + 1 == number
                rows.append({"codes": codes, "scores": scores}, finished=last)
        return rows["codes"][keep_best(np.asarray(rows["scores"]), candidates, labels)]

    def _measure(
        self, judge: tuple[str, Classifier] | None
    ) -> Callable[[np.ndarray], dict[str, Array]]:
        """Features, logits and a classifier's guesses."""
        if judge is None:
            return self.scoring.features
        _, classify = judge

        def measure(images: np.ndarray) -> dict[str, Array]:
            floats = np.asarray(to_float(images)) if images.dtype == np.uint8 else images
            _, guesses = jax.lax.top_k(classify(jnp.asarray(floats)), _GUESSES)
            return {**self.scoring.features(images), "guesses": guesses}

        return measure

    def _class_scores(
        self, rows: Rows, reference: Reference, judge: tuple[str, Classifier] | None
    ) -> Scores:
        """How many samples are of their class; on request, numbers of each class."""
        features, labels = rows["features"], rows["label"]
        comparison = self.scoring.comparison(reference)
        means = {}
        if judge:
            name, _ = judge
            hits = rows["guesses"] == labels[:, None]
            means = {f"top-1 ({name})": hits[:, 0] * 1.0, f"top-5 ({name})": hits.any(1) * 1.0}
            scores = Scores(metrics={key: float(np.mean(hit)) for key, hit in means.items()})
        else:
            scores = comparison.class_accuracy(features, labels)
        if self.scoring.by_class:
            names = self.generator.class_names
            scores.per_class = comparison.per_class(features, labels, names, means)
        return scores

    def _model_protocol(self, stage: str) -> dict[str, Any]:
        variables = getattr(self.generator, f"{stage}_variables")
        _, settings = trained_stage(self.config, self._workdir, stage)
        return {
            "model": settings.model.to_dict(),
            "weights": digest(variables),
            "step": self.generator.steps[stage],
            "average": bool(settings.ema_decay),
            "use": settings.use,
        }

    @functools.cache  # noqa: B019 - there are two
    def _source(self, split: str) -> Any:
        valid: Split = "train" if split == "train" else "validation"
        return build_source(self.config.data.source, valid, self.config.data.resolution)

    def _count(self, split: str, limit: int | None) -> int:
        there = len(self._source(split))
        return there if limit is None else min(limit, there)

    def _batches(
        self, split: str, limit: int | None, start: int
    ) -> Iterator[dict[str, np.ndarray]]:
        return evaluation_batches(
            self._source(split),
            batch_size=self.scoring.batch_size,
            resolution=self.config.data.resolution,
            limit=limit,
            start=start,
            on_broken=self.config.data.on_broken,
        )


class Stopwatch:
    """Time that an iterator takes for its batches, without the first, which compiles."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0

    def over(self, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same batches."""
        first = True
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if not first:
                self._seconds += time.perf_counter() - began
                self._images += len(batch)
            first = False
            yield batch

    def throughput(self) -> dict[str, float] | None:
        """Images and images/s; None if there was only one batch."""
        if not self._images:
            return None
        return {"images": float(self._images), "sampled images/s": self._images / self._seconds}


def _labelled(
    images: Iterator[np.ndarray], labels: Int[np.ndarray, " n"], batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for `fill` with the labels of the images."""
    for i, padded_batch in enumerate(padded(images, batch)):
        rows = np.resize(labels[i * batch : (i + 1) * batch], batch)
        yield {**padded_batch, "label": rows.astype(np.int32)}
