"""Evaluation of a run's prior: samples that are drawn, against a reference."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Int

from vqjax.evaluation.evaluated_run import EvaluatedRun
from vqjax.evaluation.evaluator import Evaluator
from vqjax.evaluation.npz import write_images
from vqjax.evaluation.protocol import digest
from vqjax.evaluation.references import Reference, padded
from vqjax.evaluation.results import Measurements, merge, result
from vqjax.evaluation.rows import Columns, Rows, fill
from vqjax.features import classifiers
from vqjax.features.classifiers import ImagenetClassifier
from vqjax.generation import image_sampler
from vqjax.generation.image_sampler import ImageSampler
from vqjax.generation.run import Run
from vqjax.losses.reconstruction import LossWeights
from vqjax.runs.sampling import Sampling
from vqjax.samplers.rejection import (
    Rejection,
    candidate_groups,
    condition_groups,
    keep_best,
)
from vqjax.tokenizers.base import tokens_shape

_Batch = TypeVar("_Batch")

# Guesses of a classifier that are kept: for the accuracy among the first five.
_GUESSES = 5


def evaluate_samples(
    run: EvaluatedRun,
    conditions: Int[np.ndarray, "n c"],
    sampling: Sampling,
    reference: Reference,
    *,
    seed: int,
    rejection: Rejection | None = None,
    classifier: ImagenetClassifier | None = None,
    extra_protocol: Mapping[str, Any],
    export: Path | None = None,
) -> dict[str, Any]:
    """The entry of metrics.json of samples, one for every condition, against a reference.

    Args:
        run: whose models draw.
        conditions: of the samples.
        sampling: settings.
        reference: to compare the samples with.
        seed: of the samples.
        rejection: of candidates by a classifier, if any.
        classifier: of the run's classes, for the accuracy of the samples.
        extra_protocol: further entries on the sampler: choice of the conditions, which classifier
            there is.
        export: .npz to write the samples to, which have 8 bits: `evaluator.pixels` is "png".

    Raises:
        InputError: there is no trained prior or tokenizer, or features are not finite.
    """
    evaluator, models = run.evaluator, run.models
    prior, classes = models.prior, models.condition.classes
    labels = conditions[:, 0] if classes else np.zeros(len(conditions), np.int32)
    modules = sampling_modules(models, sampling)
    modules += [classifiers.__name__] if classifier or rejection else []
    protocol = evaluator.protocol("generation", *modules)
    protocol["tokenizer"] = run.tokenizer_protocol()
    protocol["prior"] = run.prior_protocol()
    protocol["sampler"] = {
        **dataclasses.asdict(sampling.sampler),
        "grid": list(prior.grid),
        "decode_tile": sampling.generation.decode_tile,
        "seed": seed,
        "images": len(labels),
        "acceptance": rejection.acceptance if rejection else 1.0,
        "conditions": digest(conditions) if prior.num_ids else None,
        **extra_protocol,
    }
    distinct, groups = condition_groups(conditions)
    candidates = candidate_groups(groups, rejection.acceptance) if rejection else groups
    generation = dataclasses.replace(sampling.generation, batch_size=evaluator.batch_size)
    sampler = models.sampler(
        max(len(candidates), evaluator.batch_size),
        dataclasses.replace(sampling, generation=generation),
        seed=seed,
        rounded=evaluator.pixels == "png",
    )
    number = math.ceil(len(labels) / sampler.batch)
    columns = {**evaluator.feature_columns, "label": ((), np.int32)}
    if classifier:
        columns["guesses"] = ((_GUESSES,), np.int32)
    if export:
        size = tuple(models.tokenizer.downsampling * side for side in prior.grid)
        columns["image"] = ((*size, 3), np.uint8)
    timer, candidate_timer = BatchTimer(), BatchTimer()

    def work(rows: Rows) -> None:
        if rejection:
            ids = distinct[candidates]
            drawn = _candidates(run, sampler, rejection, ids, protocol, candidate_timer)
            kept = keep_best(np.asarray(drawn["scores"]), candidates, groups)
            images = sampler.decoded(drawn["codes"][kept], drawn["positions"][kept], rows.batches)
        else:
            images = sampler.images(conditions, rows.batches)
        start = rows.batches * sampler.batch
        batches = _labelled(timer.over(images, len), labels[start:], sampler.batch)
        fill(rows, batches, _measure(evaluator, classifier), number)

    kind = "samples" if export else "generation"
    rows = evaluator.rows(kind, protocol, len(labels), columns, work)
    measurements = evaluator.sample_metrics(rows, reference)
    if classes:
        by_class = _class_metrics(run, rows, reference, classifier)
        measurements = merge(measurements, by_class)
    elif evaluator.by_class:
        measurements.notes.append("no numbers by class: the prior is told no classes")
    measurements.notes += _classifier_notes(run, rejection, classifier)
    protocol["reference"] = reference.protocol
    if export:
        shape = (rows.count, *rows["image"].shape[1:])
        parts = (rows["image"][i : i + 256] for i in range(0, rows.count, 256))
        write_images(export, parts, shape, rows["label"] if classes else None)
    each = len(candidates) / len(labels) if rejection else 0.0
    throughput = _throughput(timer, candidate_timer, each)
    return result(measurements, protocol | evaluator.metrics_protocol, throughput)


def sampling_modules(run: Run, sampling: Sampling) -> list[str]:
    """Names of the modules by which a run's samples are drawn."""
    settings, sample = sampling.sampler, run.sampler_function
    classes = type(run.tokenizer), type(run.prior), type(settings)
    return [*(part.__module__ for part in (*classes, sample)), image_sampler.__name__]


def _candidates(
    run: EvaluatedRun,
    sampler: ImageSampler,
    rejection: Rejection,
    conditions: Int[np.ndarray, "m c"],
    protocol: Mapping[str, Any],
    timer: "BatchTimer",
) -> Rows:
    """Tokens and scores of all candidates; those that are drawn outlive a kill."""
    tokens = tokens_shape(run.models.tokenizer, run.config.data.resolution).codes.shape[1]
    columns: Columns = {
        **dict.fromkeys(("codes", "positions"), ((tokens,), np.int32)),
        "scores": ((), np.float32),
    }
    number = math.ceil(len(conditions) / sampler.batch)

    def work(rows: Rows) -> None:
        drawn = sampler.candidates(conditions, rejection, rows.batches)
        for codes, positions, scores in timer.over(drawn, lambda batch: len(batch[0])):
            last = rows.batches + 1 == number
            columns = {"codes": codes, "positions": positions, "scores": scores}
            rows.append(columns, finished=last)

    return run.evaluator.rows("candidates", protocol, len(conditions), columns, work)


def _measure(
    evaluator: Evaluator, classifier: ImagenetClassifier | None
) -> Callable[[np.ndarray], dict[str, Array]]:
    """Features, logits and a classifier's guesses of images."""
    if classifier is None:
        return evaluator.features

    def measure(images: np.ndarray) -> dict[str, Array]:
        guesses = classifier.guesses(evaluator.to_devices(images), _GUESSES)
        return {**evaluator.features(images), "guesses": guesses}

    return measure


def _class_metrics(
    run: EvaluatedRun, rows: Rows, reference: Reference, classifier: ImagenetClassifier | None
) -> Measurements:
    """The share of samples that are of their class; on request, numbers of each class."""
    features, labels = rows["features"], rows["label"]
    metrics = run.evaluator.set_metrics(reference)
    means = {}
    if classifier:
        hits = rows["guesses"] == labels[:, None]
        top_1, top_5 = hits[:, 0] * 1.0, hits.any(1) * 1.0
        means = {f"top-1 ({classifier.name})": top_1, f"top-5 ({classifier.name})": top_5}
        found = Measurements(metrics={name: float(np.mean(hit)) for name, hit in means.items()})
    else:
        found = metrics.class_accuracy(features, labels)
    if run.evaluator.by_class:
        names = run.models.condition.classes
        found = merge(found, metrics.per_class(features, labels, names, means))
    return found


def _classifier_notes(
    run: EvaluatedRun, rejection: Rejection | None, classifier: ImagenetClassifier | None
) -> Iterator[str]:
    """Objections to a classifier that chose the samples, or that their accuracy is measured by."""
    chooser = rejection.classify if rejection else None
    used = {c.name for c in (chooser, classifier) if isinstance(c, ImagenetClassifier)}
    network = run.evaluator.network
    trained_with: set[str] = set()
    for settings in run.tokenizer_settings:
        trained_with |= LossWeights(**settings.loss).networks
        if settings.discriminator.model.name == "projected":
            trained_with.add("efficientnet_lite0")
    if rejection and network.name in used:
        yield f"{network.name} chose the samples and scores them: choose by another classifier"
    if classifier and classifier is chooser:
        yield f"{classifier.name} chose the samples whose accuracy it tells"
    for name in sorted(used & trained_with):
        yield f"{name} judges samples of a tokenizer that was trained against it"


class BatchTimer:
    """The time that an iterator takes for its batches, without the first, which compiles."""

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
    images: BatchTimer, candidates: BatchTimer, candidates_per_image: float
) -> dict[str, float] | None:
    """Images/s with all that was drawn for them; None where not all of it was timed."""
    seconds = images.seconds_per_image
    if candidates_per_image and seconds:
        for_each = candidates.seconds_per_image
        seconds = for_each and seconds + candidates_per_image * for_each
    return {"sampled images/s": 1 / seconds} if seconds else None


def _labelled(
    images: Iterator[np.ndarray], labels: Int[np.ndarray, " n"], batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for `fill` with the labels of the images."""
    for i, padded_batch in enumerate(padded(images, batch)):
        rows = np.resize(labels[i * batch : (i + 1) * batch], batch)
        yield {**padded_batch, "label": rows.astype(np.int32)}
