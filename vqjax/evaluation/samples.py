"""Scores of a run: of its reconstructions of a split of its data, and of its samples."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from vqjax.evaluation.scoring import Scoring
from vqjax.features.classifiers import ImagenetClassifier
from vqjax.generation.run import Drawing, Generator
from vqjax.losses.perceptual import load_lpips
from vqjax.parallel import replicated
from vqjax.pixels import to_float
from vqjax.runs.workdir import trained_stage
from vqjax.samplers.multigrained import BlockwiseSampling
from vqjax.samplers.rejection import Rejection, candidate_labels, keep_best

_Batch = TypeVar("_Batch")

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
        source = self._source(split)
        return {
            "split": split,
            "source": self.config.data.source.name,
            "files": source.fingerprint,
            "classes": digest(list(map(str, source.class_names))),
            "limit": self._count(split, limit),
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

    def export_split(self, split: str, limit: int | None, reference: Reference, file: Path) -> None:
        """Writes the images of a split, with their classes, for other evaluators.

        Args:
            split: of the run's data, "train" or "validation".
            limit: see `reference`.
            reference: what that has made of them.
            file: the .npz to write.
        """
        side = self.config.data.resolution
        images = (batch["image"][batch["valid"]] for batch in self._batches(split, limit, 0))
        shape = (reference.protocol["count"], side, side, 3)
        write_images(file, images, shape, reference.labels)

    def reconstruction(self, split: str, limit: int | None) -> dict[str, Any]:
        """Scores the reconstructions of a split against the images themselves.

        Args:
            split: of the run's data, "train" or "validation".
            limit: at most so many, the first ones of a fixed random order; None for all.

        Raises:
            InputError: there is no trained tokenizer, or features are not finite.
        """
        scoring, tokenizer = self.scoring, self.generator.tokenizer
        resolution = self.config.data.resolution
        loss = trained_stage(self.config, self._workdir, "tokenizer")[1].loss
        trained_with = loss.perceptual_net if loss.perceptual else None
        lpips = reconstruction.metric_lpips(trained_with, resolution)
        protocol = scoring.protocol("reconstruction")
        protocol["images"] = self.split_protocol(split, limit)
        protocol["tokenizer"] = self._model_protocol("tokenizer")
        protocol["perceptual"] = f"LPIPS 0.1, {lpips.net}" if lpips else None

        columns = reconstruction.columns(tokenizer, scoring.network, lpips, resolution)
        count = self._count(split, limit)

        def work(rows: Rows) -> None:
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
                math.ceil(count / scoring.batch_size),
                "reconstruction",
            )

        rows = scoring.rows("reconstruction", protocol, count, columns, work)
        pixels, each = reconstruction.pixel_scores(rows, tokenizer.num_codes)
        features, labels = rows["features"], rows["label"]
        original = Reference.of(rows["original_features"], labels, {"images": "their originals"})
        comparison = scoring.comparison(original)
        scores = merge(pixels, comparison.distances(features, prefix="r"))
        if scoring.by_class:
            names = self.generator.class_names
            by_class = comparison.per_class(features, labels, names, each, prefix="r")
            scores = merge(scores, by_class)
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
        judge: ImagenetClassifier | None = None,
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
            judge: a classifier of the run's classes, for their accuracy.
            further: what else belongs into the protocol: how the labels were chosen, what the
                candidates and samples are judged by.
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
            "classes": digest(labels) if prior.num_classes else None,
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
        watch, drawing_watch = Stopwatch(), Stopwatch()

        def work(rows: Rows) -> None:
            if rejection:
                drawn = self._candidates(drawing, rejection, candidates, protocol, drawing_watch)
                codes = drawn["codes"][keep_best(np.asarray(drawn["scores"]), candidates, labels)]
                images = drawing.decoded(codes, rows.batches)
            else:
                images = drawing.images(labels, rows.batches)
            start = rows.batches * drawing.batch
            batches = _labelled(watch.over(images, len), labels[start:], drawing.batch)
            fill(rows, batches, self._measure(judge), number)

        what = "samples" if export else "generation"
        rows = scoring.rows(what, protocol, len(labels), columns, work)
        scores = scoring.samples(rows, reference)
        if prior.num_classes:
            scores = merge(scores, self._class_scores(rows, reference, judge))
        elif scoring.by_class:
            scores.notes.append("no numbers by class: the prior knows no classes")
        scores.notes += self._notes(rejection, judge)
        protocol["reference"] = reference.protocol
        if export:
            shape = (rows.count, *rows["image"].shape[1:])
            parts = (rows["image"][i : i + 256] for i in range(0, rows.count, 256))
            write_images(export, parts, shape, rows["label"] if prior.num_classes else None)
        each = len(candidates) / len(labels) if rejection else 0.0
        throughput = _throughput(watch, drawing_watch, each)
        return result(scores, protocol | scoring.metrics_protocol, throughput)

    def _candidates(
        self,
        drawing: Drawing,
        rejection: Rejection,
        candidates: Int[np.ndarray, " m"],
        protocol: Mapping[str, Any],
        watch: "Stopwatch",
    ) -> Rows:
        """Codes and scores of all candidates; what is drawn of them outlives a kill."""
        h, w = self.generator.prior.grid
        columns = {"codes": ((h * w,), np.int32), "scores": ((), np.float32)}
        number = math.ceil(len(candidates) / drawing.batch)

        def work(rows: Rows) -> None:
            drawn = drawing.candidates(candidates, rejection, rows.batches)
            for codes, scores in watch.over(drawn, lambda batch: len(batch[0])):
                last = rows.batches + 1 == number
                rows.append({"codes": codes, "scores": scores}, finished=last)

        return self.scoring.rows("candidates", protocol, len(candidates), columns, work)

    def _measure(
        self, judge: ImagenetClassifier | None
    ) -> Callable[[np.ndarray], dict[str, Array]]:
        """Features, logits and a classifier's guesses."""
        if judge is None:
            return self.scoring.features

        def measure(images: np.ndarray) -> dict[str, Array]:
            placed = self.scoring.place(images)
            floats = to_float(placed) if placed.dtype == jnp.uint8 else placed
            _, guesses = jax.lax.top_k(judge(floats), _GUESSES)
            return {**self.scoring.features(images), "guesses": guesses}

        return measure

    def _notes(
        self, rejection: Rejection | None, judge: ImagenetClassifier | None
    ) -> Iterator[str]:
        """What there is to be said against a classifier that chose samples or judges them."""
        chooser = rejection.classify if rejection else None
        used = {c.name for c in (chooser, judge) if isinstance(c, ImagenetClassifier)}
        scorer, adversary = self.scoring.network, self.config.tokenizer.discriminator.model
        if rejection and scorer.name in used:
            yield f"{scorer.name} chose the samples and scores them: choose by another classifier"
        if judge and judge is chooser:
            yield f"{judge.name} chose the samples whose accuracy it tells"
        if adversary.name == "projected" and "efficientnet_lite0" in used:
            yield "efficientnet_lite0 judges samples of a tokenizer that was trained against it"

    def _class_scores(
        self, rows: Rows, reference: Reference, judge: ImagenetClassifier | None
    ) -> Scores:
        """How many samples are of their class; on request, numbers of each class."""
        features, labels = rows["features"], rows["label"]
        comparison = self.scoring.comparison(reference)
        means = {}
        if judge:
            hits = rows["guesses"] == labels[:, None]
            first, any_of = hits[:, 0] * 1.0, hits.any(1) * 1.0
            means = {f"top-1 ({judge.name})": first, f"top-5 ({judge.name})": any_of}
            scores = Scores(metrics={key: float(np.mean(hit)) for key, hit in means.items()})
        else:
            scores = comparison.class_accuracy(features, labels)
        if self.scoring.by_class:
            names = self.generator.class_names
            scores = merge(scores, comparison.per_class(features, labels, names, means))
        return scores

    def _model_protocol(self, stage: str) -> dict[str, Any]:
        variables = getattr(self.generator, f"{stage}_variables")
        _, settings = trained_stage(self.config, self._workdir, stage)
        return {
            "model": self.config[stage].model.to_dict(),
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

    def over(self, batches: Iterator[_Batch], size: Callable[[_Batch], int]) -> Iterator[_Batch]:
        """The same batches, of so many images each."""
        first = True
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if not first:
                self._seconds += time.perf_counter() - began
                self._images += size(batch)
            first = False
            yield batch

    @property
    def seconds_per_image(self) -> float | None:
        """None if there was only one batch, or none."""
        return self._seconds / self._images if self._images else None


def _throughput(
    images: Stopwatch, candidates: Stopwatch, candidates_per_image: float
) -> dict[str, float] | None:
    """Images/s with all that was drawn for them; None where not all of it was timed."""
    seconds = images.seconds_per_image
    if candidates_per_image and seconds:
        drawing = candidates.seconds_per_image
        seconds = drawing and seconds + candidates_per_image * drawing
    return {"sampled images/s": 1 / seconds} if seconds else None


def _labelled(
    images: Iterator[np.ndarray], labels: Int[np.ndarray, " n"], batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for `fill` with the labels of the images."""
    for i, padded_batch in enumerate(padded(images, batch)):
        rows = np.resize(labels[i * batch : (i + 1) * batch], batch)
        yield {**padded_batch, "label": rows.astype(np.int32)}
