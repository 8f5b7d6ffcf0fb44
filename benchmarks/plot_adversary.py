"""Losses and adaptive weight of a run around the start of its adversary, as one picture.

    python benchmarks/plot_adversary.py --workdir=runs/openmoji [--beside=runs/without] [--out=...]

Reads the `metrics.jsonl` of the tokenizer. `--beside` draws a second run in grey, such as the same
one without an adversary.
"""

import io

import matplotlib
from absl import flags

from vqjax.files import open_path, write_whole
from vqjax.programs import command_line
from vqjax.report.curves import read_metrics
from vqjax.runs.workdir import read_config

matplotlib.use("Agg")
from matplotlib import pyplot

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
BESIDE = flags.DEFINE_string("beside", "", "Folder of another run, to be drawn in grey")
OUT = flags.DEFINE_string("out", "", "PNG to be written [<workdir>/tokenizer/adversary.png]")
flags.mark_flag_as_required("workdir")

METRICS = "tokenizer/metrics.jsonl"
# Title, metrics, and whether the axis is logarithmic.
PANELS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("reconstruction", ("train/l2", "train/perceptual"), True),
    ("held-out PSNR, dB", ("validation/psnr",), False),
    ("weight of the adversarial loss", ("train/adaptive_weight", "train/adversarial_weight"), True),
    ("discriminator: accuracy", ("train/accuracy_real", "train/accuracy_fake"), False),
    (
        "gradient norm at the last layer",
        ("train/last_layer_gradient_reconstruction", "train/last_layer_gradient_adversarial"),
        True,
    ),
    ("losses of both networks", ("train/generator_loss", "train/discriminator_loss"), False),
)


def main() -> None:
    """Draws the panels."""
    workdir = open_path(WORKDIR.value or "", "--workdir")
    curves = read_metrics(workdir / METRICS)
    beside = read_metrics(open_path(BESIDE.value, "--beside") / METRICS) if BESIDE.value else {}
    starts = read_config(workdir).tokenizer.discriminator.start
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6), layout="constrained")
    for axis, (title, names, logarithmic) in zip(axes.flat, PANELS, strict=True):
        for style, name in zip(("-", "--"), names, strict=False):
            label = name.split("/")[1]
            if name in beside:
                axis.plot(*beside[name], style, color="0.6", label=f"{label}, {BESIDE.value}")
            if name in curves:
                axis.plot(*curves[name], style, marker=".", label=label)
        if logarithmic:
            axis.set_yscale("log")
        axis.axvline(starts, color="0.8", zorder=0)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    beside_metrics = (workdir / METRICS).with_name("adversary.png")
    out = open_path(OUT.value, "--out") if OUT.value else beside_metrics
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90)
    write_whole(out, picture.getvalue())
    print(out)


if __name__ == "__main__":
    command_line.run(main)
