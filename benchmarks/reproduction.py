"""The claims of paper 001 on small photographs: codebooks, semantic ratio, two phases, decoders.

    python benchmarks/reproduction.py --photographs=/data/photographs --workdir=runs/reproduction

Trains the runs of `RUNS` with configs/folder_seqgan.py, each with every seed, and prints how full
their codebooks are, how good their reconstructions, and how well a prior predicts their codes, as
mean and range over the seeds. What is trained already is not trained again; stopped, it goes on
where it was. `--only=entropy,plain --seeds=0` trains some; the tables have what there is.

The photographs lie in the sub-folders `train` and `test`, in folders by class. Nothing is told to
the prior of these.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from vqjax.programs import command_line

ROOT = Path(__file__).parents[1]

PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "Folder with train and test")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every run")
ONLY = flags.DEFINE_list("only", [], "Names of the runs to train; none for all")
flags.mark_flags_as_required(["photographs", "workdir"])

# Of codebooks by themselves: l1 alone, as no other loss decides which codes are in use.
ALONE = (
    "--config.tokenizer.discriminator.model.name=none",
    "--config.tokenizer.loss.semantic=0",
    "--config.tokenizer.steps=200",
    "--config.tokenizer.eval_every=100",
)
# Argument of the config, the stages, and more settings, of every run by name.
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "plain": ("phases=1,codebook=plain", "tokenizer", ALONE),
    "fn": ("phases=1,codebook=fn", "tokenizer", ALONE),
    "kmeans": ("phases=1,codebook=kmeans", "tokenizer", ALONE),
    "entropy": ("phases=1", "tokenizer", ALONE),
    "details": ("phases=1,alpha=0", "tokenizer,prior", ()),
    "half": ("phases=1,alpha=0.5", "tokenizer,prior", ()),
    "two_phases": ("", "tokenizer,decoder,prior", ()),
    "joint": ("decoder=attention,alpha=0", "tokenizer,prior", ()),
}

# Title, and rows: what it is, the run, and the paper's number.
Rows = list[tuple[str, str, str]]
CODEBOOKS: Rows = [
    ("plain", "plain", "43.5 %"),
    ("factorized and normalised, K = 8,192", "fn", "99.7 %"),
    ("k-means between epochs", "kmeans", "100 %"),
    ("entropy", "entropy", "100 %"),
]
RATIOS: Rows = [
    ("alpha = 0", "details", "16.97"),
    ("alpha = 0.5", "half", "in figure 6"),
    ("alpha = 1", "two_phases", "12.07"),
]
DECODERS: Rows = [
    ("convolutions alone", "details", "3.45, 16.97"),
    ("attention twice, trained together", "joint", "2.90, 17.42"),
]


def train(name: str, seed: str) -> None:
    """Trains a run, or what of it is missing."""
    argument, stages, more = RUNS[name]
    folder = Path(PHOTOGRAPHS.value or "").resolve()
    command = [
        "train.py",
        f"--config=configs/folder_seqgan.py:{argument}",
        f"--workdir={run_folder(name, seed)}",
        f"--config.data.source.path={folder}",
        "--config.data.source.train_folder=train",
        "--config.data.source.validation_folder=test",
        "--config.condition.name=none",
        "--config.prior.model.condition_dropout=0",
        f"--config.stages={stages}",
        f"--config.seed={seed}",
        *more,
    ]
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def run_folder(name: str, seed: str) -> Path:
    """The workdir of a run."""
    return Path(WORKDIR.value or "").resolve() / f"{name}_{seed}"


def validated(name: str, stage: str, metric: str, best: str = "") -> list[float]:
    """A metric of a stage at the end of its training, of every seed that is trained.

    Args:
        name: of the run.
        stage: of the run.
        metric: that is validated.
        best: "min" for the least value that it ever had, in the place of the last.
    """
    found = []
    for seed in SEEDS.value:
        file = run_folder(name, seed) / stage / "metrics.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
        values = [line[key] for line in lines if (key := f"validation/{metric}") in line]
        if values:
            found.append(min(values) if best == "min" else values[-1])
    return found


def shown(values: Iterable[float], digits: int, unit: str = "", scale: float = 1.0) -> str:
    """Mean and range of some values."""
    values = [scale * value for value in values]
    if not values:
        return "not trained"
    mean = sum(values) / len(values)
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{unit}{spread}"


def table(columns: list[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Trains, and prints the tables."""
    for seed in SEEDS.value:
        for name in ONLY.value or RUNS:
            train(name, seed)

    def used(name: str) -> str:
        return shown(validated(name, "tokenizer", "codebook_usage"), 1, " %", 100)

    def psnr(name: str, stage: str = "tokenizer") -> str:
        return shown(validated(name, stage, "psnr"), 2, " dB")

    def nats(name: str) -> str:
        return shown(validated(name, "prior", "nats_per_token", "min"), 3)

    table(
        ["codebook (table 5)", "codes in use", "paper", "reconstruction"],
        [(what, used(name), paper, psnr(name)) for what, name, paper in CODEBOOKS],
    )
    table(
        ["semantic ratio (figures 6, 10)", "nats a token", "paper: FID of AR", "reconstruction"],
        [(what, nats(name), paper, psnr(name)) for what, name, paper in RATIOS],
    )
    table(
        ["decoder (table 1)", "reconstruction", "nats a token", "paper: rFID, FID of AR"],
        [(what, psnr(name), nats(name), paper) for what, name, paper in DECODERS],
    )
    stages = ("phase 1", "tokenizer"), ("phase 2", "decoder")
    table(
        ["two phases (figure 8)", "reconstruction"],
        [(what, psnr("two_phases", stage)) for what, stage in stages],
    )


if __name__ == "__main__":
    command_line.run(main)
