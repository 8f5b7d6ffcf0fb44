"""Evaluation of a run's tokenizer: its reconstructions of a split of the data."""

import math
from typing import Any, get_args

import jax

from vqjax.evaluation import pair_metrics
from vqjax.evaluation.evaluated_run import EvaluatedRun
from vqjax.evaluation.references import Reference
from vqjax.evaluation.results import merge, result
from vqjax.evaluation.rows import Rows, fill
from vqjax.losses.perceptual import Net, load_lpips
from vqjax.losses.reconstruction import LossWeights
from vqjax.parallel import replicated


def evaluate_reconstructions(run: EvaluatedRun, split: str, limit: int | None) -> dict[str, Any]:
    """The entry of metrics.json of a split's reconstructions, against the images themselves.

    Args:
        run: whose tokenizer reconstructs.
        split: of the run's data, "train" or "validation".
        limit: at most so many, the first ones of a fixed random order; None for all.

    Raises:
        InputError: there is no trained tokenizer, or features are not finite.
    """
    evaluator, tokenizer = run.evaluator, run.models.tokenizer
    resolution = run.config.data.resolution
    losses = [LossWeights(**settings.loss) for settings in run.tokenizer_settings]
    networks = {network for loss in losses for network in loss.networks}
    trained_with = networks.intersection(get_args(Net))
    lpips = pair_metrics.metric_lpips(trained_with, resolution)
    modules = pair_metrics.__name__, type(tokenizer).__module__, *run.split_modules(split)
    protocol = evaluator.protocol("reconstruction", *modules)
    protocol["images"] = run.split_protocol(split, limit)
    protocol["tokenizer"] = run.tokenizer_protocol()
    protocol["perceptual"] = f"LPIPS 0.1, {lpips.net}" if lpips else None

    columns = pair_metrics.columns(tokenizer, evaluator.network, lpips, resolution)
    count = run.split_count(split, limit)

    def work(rows: Rows) -> None:
        measure = pair_metrics.measurer(tokenizer, evaluator.network, lpips, evaluator.pixels)
        variables = {
            "tokenizer": run.models.tokenizer_variables,
            "network": evaluator.network_variables,
        }
        if lpips:
            _, weights = load_lpips(lpips.net)
            variables["lpips"] = jax.device_put(weights, replicated(evaluator.mesh))
        jitted = jax.jit(measure)
        fill(
            rows,
            run.split_batches(split, limit, rows.batches),
            lambda images: jitted(variables, evaluator.to_devices(images)),
            math.ceil(count / evaluator.batch_size),
            "reconstruction",
        )

    rows = evaluator.rows("reconstruction", protocol, count, columns, work)
    measurements, each = pair_metrics.summary(
        rows, tokenizer.num_codes, tokenizer.grid(resolution, resolution)
    )
    features, labels = rows["features"], rows["label"]
    original = Reference.of(rows["original_features"], labels, {"images": "their originals"})
    metrics = evaluator.set_metrics(original)
    measurements = merge(measurements, metrics.distances(features, prefix="r"))
    if evaluator.by_class:
        names = run.class_names(split)
        by_class = metrics.per_class(features, labels, names, each, prefix="r")
        measurements = merge(measurements, by_class)
    if len(trained_with) > 1:
        measurements.notes.append("no LPIPS: the tokenizer was trained with both of its networks")
    protocol["images"]["count"] = rows.count
    return result(measurements, protocol | evaluator.metrics_protocol)
