"""The head of a report: a paragraph, and a few numbers."""

from collections.abc import Mapping

from vqjax.data import Source
from vqjax.generation.run import Run
from vqjax.report.codebook import Codebook
from vqjax.report.curves import Curves, last
from vqjax.report.neighbours import Neighbours
from vqjax.report.page import KeyNumber, Missing, StageReport
from vqjax.report.tables import Evaluation, Metric, number
from vqjax.runs.stages import tokenizer_of

Evaluations = Mapping[str, Evaluation | Missing]
Stages = Mapping[str, StageReport | Missing]

_DISTANCES = {"reconstruction": ("rFID", "rFD"), "generation": ("FID", "FD")}


def summary(
    run: Run,
    stages: Stages,
    training: Source | Missing,
    found: Evaluations,
    codebook: Codebook | Missing,
    neighbours: Neighbours | Missing,
) -> str:
    """A paragraph on the models, their data and their quality."""
    data, tokenizer = run.config.data, run.tokenizer
    h, w = tokenizer.grid(data.resolution, data.resolution)
    sizes = {
        name: f"{stage.model}, {_millions(stage.size)} parameters"
        for name, stage in stages.items()
        if isinstance(stage, StageReport)
    }
    codes_stage, decoder_stage = tokenizer_of(run.config, run.tokenizer_stage), run.tokenizer_stage
    told_tokenizer = sizes[codes_stage]
    if decoder_stage != codes_stage:
        told_tokenizer += f", with the decoder of the stage {decoder_stage}"
    models = (
        f"A tokenizer ({told_tokenizer}) that turns"
        f" {data.resolution}×{data.resolution} pixels into {h}×{w}"
        f" codes out of {tokenizer.num_codes:,}"
    )
    if run.prior_stage in sizes:
        conditional = f"{run.condition.name}-conditional"
        kind = conditional if run.condition.length else "unconditional"
        models += f", and a prior ({sizes[run.prior_stage]}, {kind}) that draws such codes"
    images = "" if isinstance(training, Missing) else f"{len(training):,} images: "
    sentences = [f"{models}; trained on {images}{data.source.name}"]
    for kind, told in (("reconstruction", "Held-out images are reconstructed"), ("generation", "")):
        distance = _distance(found[kind], kind)
        quality = _metric(found[kind], "PSNR")
        parts = [f"at {quality.value:.1f} dB (PSNR)"] if quality else []
        if distance:
            parts.append(f"with {_with_interval(distance)}")
        if parts and told:
            sentences.append(f"{told} {', '.join(parts)}")
        elif distance:
            sentences.append(f"Samples have {_with_interval(distance)}")
    if isinstance(codebook, Codebook):
        sentences.append(
            f"{codebook.used:,} of the codes are used, with a perplexity of"
            f" {number(codebook.perplexity)}"
        )
    if isinstance(neighbours, Neighbours):
        sentences.append(
            f"{100 * neighbours.near:.3g} % of the samples are as near to a training image as"
            f" {100 * neighbours.near_held_out:.3g} % of the held-out images are"
        )
    return f"{'. '.join(sentences)}."


def key_numbers(
    stages: Stages,
    found: Evaluations,
    codebook: Codebook | Missing,
    curves: Curves | Missing,
) -> list[KeyNumber]:
    """The few numbers that say most; where a run is not evaluated, the training's own."""
    numbers = []
    quality = _metric(found["reconstruction"], "PSNR")
    trained = last(curves, "validation/psnr") if isinstance(curves, dict) else None
    if quality:
        numbers.append(KeyNumber("PSNR", f"{quality.value:.2f} dB", "of reconstructions"))
    elif trained is not None:
        numbers.append(KeyNumber("PSNR", f"{trained:.2f} dB", "last evaluation in training"))
    for kind, of in (("reconstruction", "of reconstructions"), ("generation", "of samples")):
        distance = _distance(found[kind], kind)
        if distance:
            note = of if not distance.interval else f"{of}, {_interval(distance)}"
            numbers.append(KeyNumber(distance.name, number(distance.value), note))
    if isinstance(codebook, Codebook):
        share = f"{100 * codebook.used / codebook.num_codes:.3g} %"
        of = f"{codebook.used:,} of {codebook.num_codes:,} codes"
        numbers.append(KeyNumber("Codebook usage", share, of))
        note = "of the codes, whole split"
        numbers.append(KeyNumber("Perplexity", number(codebook.perplexity), note))
    for name, stage in stages.items():
        if isinstance(stage, StageReport):
            note = f"parameters, {stage.trained:,} steps"
            numbers.append(KeyNumber(name.capitalize(), _millions(stage.size), note))
    return numbers


def _metric(evaluation: Evaluation | Missing, name: str) -> Metric | None:
    return evaluation.metric(name) if isinstance(evaluation, Evaluation) else None


def _distance(evaluation: Evaluation | Missing, kind: str) -> Metric | None:
    """The Fréchet distance, on whichever network."""
    return next(filter(None, (_metric(evaluation, name) for name in _DISTANCES[kind])), None)


def _with_interval(metric: Metric) -> str:
    interval = f" ({_interval(metric)})" if metric.interval else ""
    return f"{metric.name} {number(metric.value)}{interval}"


def _interval(metric: Metric) -> str:
    assert metric.interval
    return " to ".join(number(end) for end in metric.interval)


def _millions(size: int) -> str:
    return f"{size / 1e6:.3g} M" if size >= 100_000 else f"{size:,}"
