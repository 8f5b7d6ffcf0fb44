"""The curves of a stage's training, from its `metrics.jsonl`."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from vqjax.errors import InputError
from vqjax.report.charts import Chart, Series, line_chart

Curves = dict[str, tuple[list[float], list[float]]]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart of metrics that belong together, of training and validation alike.

    Attributes:
        title: heading.
        metrics: labels in the legend by name, without "train/" or "validation/".
        caption: text below it.
        log: whether their axis is logarithmic.
        limits: of their axis.
    """

    title: str
    metrics: Mapping[str, str]
    caption: str
    log: bool = False
    limits: tuple[float, float] | None = None


PANELS = (
    Panel(
        "Loss",
        {"loss": "loss"},
        "What the stage minimises.",
    ),
    Panel(
        "Loss without label smoothing, nats a token",
        {f"loss_at_{ratio}": f"{ratio} masked" for ratio in (0.25, 0.5, 0.75, 1.0)}
        | {"nats_per_token": "from those before", "unigram_entropy": "unigram entropy"},
        "By the part of a block or an image that is masked, or of each token from those before it."
        " Below the codes' unigram entropy, the prior knows more than how frequent each code is"
        " (where it has no positions to tell besides).",
    ),
    Panel(
        "Codes and positions, nats a token",
        {"code_nats": "codes", "position_nats": "positions"},
        "The two parts of the loss, in training and on held-out images: of each code from the"
        " tokens before it, and of its position from these and the code.",
    ),
    Panel(
        "Parts of the reconstruction loss",
        {"l1": "l1", "l2": "l2", "perceptual": "LPIPS", "semantic": "semantic"},
        "Each term without its weight, in training and on held-out images.",
        log=True,
    ),
    Panel("Held-out PSNR, dB", {"psnr": "PSNR"}, "Of held-out images; higher is better."),
    Panel(
        "Accuracy",
        {
            "accuracy": "accuracy",
            "code_accuracy": "of codes",
            "position_accuracy": "of positions",
        },
        "Share of the predicted tokens that are guessed.",
    ),
    Panel(
        "Codebook: perplexity",
        {"batch_perplexity": "of a batch", "codebook_perplexity": "of the split"},
        "How many codes used alike would be as varied; that of a batch is bounded by its tokens.",
    ),
    Panel(
        "Codebook: share of codes in use",
        {"codebook_usage": "usage"},
        "Codes that occur at all in the held-out images.",
        limits=(0.0, 1.0),
    ),
    Panel(
        "Codebook: losses",
        {"vq_loss": "quantizer", "commitment_loss": "commitment"},
        "What quantizing costs, and how far the encoder is from its codes.",
        log=True,
    ),
    Panel(
        "Weight of the adversary",
        {"adaptive_weight": "adaptive", "adversarial_weight": "in all"},
        "The adaptive weight is the ratio of both gradients below; in all: times the config's"
        " weight and the ramp.",
        log=True,
    ),
    Panel(
        "Gradients at the last layer",
        {
            "last_layer_gradient_reconstruction": "reconstruction",
            "last_layer_gradient_adversarial": "adversarial",
        },
        "Norms, from which the adaptive weight is taken.",
        log=True,
    ),
    Panel(
        "Losses of both networks",
        {"generator_loss": "tokenizer", "discriminator_loss": "discriminator"},
        "The adversarial losses, unweighted.",
    ),
    Panel(
        "Accuracy of the discriminator",
        {"accuracy_real": "real images", "accuracy_fake": "reconstructions"},
        "Both near 1: it has won, and its gradient says little.",
        limits=(0.0, 1.02),
    ),
    Panel(
        "Gradient norms",
        {"gradient_norm": "model", "discriminator_gradient_norm": "discriminator"},
        "Before clipping.",
        log=True,
    ),
    Panel("Learning rate", {"learning_rate": "learning rate"}, "Of the model's optimizer."),
)


def read_metrics(file: epath.PathLike) -> Curves:
    """Steps and values of every metric; a value that was not finite is NaN.

    Raises:
        InputError: there is no such file.
    """
    file = epath.Path(file)
    if not file.is_file():
        raise InputError(f"there is no {file}: it is written while train.py trains that stage")
    curves: Curves = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            # The line that a run being trained is just writing.
            continue
        step = float(values.pop("step"))
        for name, value in values.items():
            steps, points = curves.setdefault(name, ([], []))
            steps.append(step)
            points.append(float("nan") if value is None else float(value))
    return curves


def charts(stage: str, curves: Curves, start: int | None) -> list[Chart]:
    """All curves of a stage: those of `PANELS`, then any others one by one.

    Args:
        stage: its name.
        curves: of `read_metrics`.
        start: first step of the adversary, if there is one.
    """
    known = {name for panel in PANELS for name in panel.metrics}
    found = dict.fromkeys(name.split("/", 1)[-1] for name in curves)
    others = [Panel(name, {name: name}, "") for name in found if name not in known]
    end = max((steps[-1] for steps, _ in curves.values()), default=None)
    result = []
    for number, panel in enumerate((*PANELS, *others)):
        series = _series(panel, curves)
        if series:
            result.append(
                line_chart(
                    f"{stage}-{number}",
                    panel.title,
                    panel.caption,
                    series,
                    log=panel.log,
                    limits=panel.limits,
                    start=start,
                    end=end,
                )
            )
    return result


def last(curves: Curves, name: str) -> float | None:
    """The newest value of a metric; None if it has none."""
    return curves[name][1][-1] if name in curves else None


def _series(panel: Panel, curves: Curves) -> list[Series]:
    """The panel's metrics that there are; the label says which kind where both are."""
    splits = ("train", "validation")
    present = {s for s in splits for name in panel.metrics if f"{s}/{name}" in curves}
    series = []
    for color, (name, label) in enumerate(panel.metrics.items()):
        for split in splits:
            if f"{split}/{name}" not in curves:
                continue
            x, y = (np.asarray(values) for values in curves[f"{split}/{name}"])
            held_out = split == "validation"
            kind = {True: "held-out", False: "training"}[held_out]
            both = f"{label}, {kind}" if len(present) > 1 else label
            series.append(Series(both, x, y, held_out, color))
    return series
