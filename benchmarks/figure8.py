"""Figure 8 of paper 000: how good samples are by the side of a block and by the steps in each.

    python benchmarks/figure8.py --run=runs/openmoji --workdir=runs/figure8

Trains a prior for each side W_s on the tokenizer of a finished run of configs/openmoji_effvqgan.py,
otherwise as that config does; of each image a step predicts as many tokens. Then scores samples of
each with at most 8 steps in a block, and samples of the run itself by the number T of steps: the
Fréchet distance to the training set by EfficientNet-lite1. Stopped, it goes on where it was. Writes
figure8.json and figure8.png to the workdir.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
from absl import flags

from vqjax.errors import InputError
from vqjax.evaluation.results import read_results
from vqjax.files import write_whole
from vqjax.programs import command_line
from vqjax.runs.workdir import read_config

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
METRIC = "FD-lite1"

RUN = flags.DEFINE_string("run", None, "Finished run whose tokenizer is used")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the priors and the figure")
BLOCKS = flags.DEFINE_list("blocks", ["1", "2", "4", "8"], "W_s: sides of a block in cells")
STEPS = flags.DEFINE_list("steps", ["1", "2", "4", "8", "16"], "T: steps in a block of the run")
NUM = flags.DEFINE_integer("num", 2_000, "Samples of each point")
flags.mark_flags_as_required(["run", "workdir"])

# Of a point: the distance and its standard error.
Score = tuple[float, float]


def run_command(*arguments: str) -> None:
    """Runs a command of the project, and shows it."""
    print("$ python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def trained(run: Path, workdir: Path, block: int) -> Path:
    """The folder of a run with a prior of this block: the given run where that is its own."""
    own = read_config(run).prior.model
    if not isinstance(own.query_blocks_per_image, int) or read_config(run).data.resolution != 32:
        raise InputError(f"--run={run}: a run of configs/openmoji_effvqgan.py as it is is needed")
    if block == own.block_size:
        return run
    folder = workdir / f"block{block}"
    predicted = own.query_blocks_per_image * own.block_size**2
    run_command(
        "train.py",
        "--config=configs/openmoji_effvqgan.py",
        f"--workdir={folder}",
        f"--config.tokenizer.use_from={run}",
        f"--config.prior.model.block_size={block}",
        f"--config.prior.model.query_blocks_per_image={max(predicted // block**2, 1)}",
    )
    return folder


def score(folder: Path, out: Path, steps: int) -> Score:
    """The distance of samples with so many steps in a block."""
    run_command(
        *("-m", "vqjax", "evaluate", "--what=generation"),
        *(f"--workdir={folder}", f"--out={out}", f"--num={NUM.value}", f"--steps={steps}"),
    )
    entry = read_results(out)["generation"]
    return entry["metrics"][METRIC], entry["spread"][METRIC]


def draw(by_block: dict[int, Score], by_steps: dict[int, Score]) -> bytes:
    """The two plots side by side, as a PNG."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
    titles = "side of a block, W_s", "steps in a block, T"
    for axis, title, scores in zip(axes, titles, (by_block, by_steps), strict=True):
        values, spreads = zip(*scores.values(), strict=True)
        axis.errorbar(list(scores), values, spreads, marker="o", capsize=3)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(scores), map(str, scores))
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{METRIC} of {NUM.value:,} samples")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90)
    return picture.getvalue()


def main() -> None:
    """Trains, scores and draws."""
    run, workdir = Path(RUN.value or "").resolve(), Path(WORKDIR.value or "").resolve()
    by_block, by_steps = {}, {}
    for block in map(int, BLOCKS.value):
        folder = trained(run, workdir, block)
        by_block[block] = score(folder, workdir / f"W{block}", min(8, block**2))
    for steps in map(int, STEPS.value):
        by_steps[steps] = score(run, workdir / f"T{steps}", steps)
    found = {"W_s": by_block, "T": by_steps}
    write_whole(workdir / "figure8.json", json.dumps(found, indent=2) + "\n")
    write_whole(workdir / "figure8.png", draw(by_block, by_steps))
    for name, scores in found.items():
        for value, (distance, spread) in scores.items():
            print(f"{name} = {value:<4}{METRIC} {distance:.1f} +- {spread:.1f}")


if __name__ == "__main__":
    command_line.run(main)
