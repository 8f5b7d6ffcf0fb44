"""What the scripts share that reproduce a paper's claims: small runs on photographs, and tables.

The photographs lie in the sub-folders `train` and `test` of a folder, in folders by class. Nothing
is told to a prior of these. What is trained already is not trained again; stopped, it goes on where
it was.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from absl import flags

ROOT = Path(__file__).parents[1]

PHOTOGRAPHS = flags.DEFINE_string("photographs", None, "Folder with train and test")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every run")
ONLY = flags.DEFINE_list("only", [], "Names of the runs to train; none for all")
flags.mark_flags_as_required(["photographs", "workdir"])


class SmallRun(NamedTuple):
    """A run to train.

    Attributes:
        config: name of its file, and the argument.
        stages: to train, with commas between them.
        more: further settings.
    """

    config: str
    stages: str
    more: tuple[str, ...] = ()


def train_all(runs: Mapping[str, SmallRun]) -> None:
    """Trains the runs that are asked for with every seed, or what of them is missing."""
    for seed in SEEDS.value:
        for name in ONLY.value or runs:
            _train(name, seed, runs[name])


def _train(name: str, seed: str, run: SmallRun) -> None:
    folder = Path(PHOTOGRAPHS.value or "").resolve()
    command = [
        "train.py",
        f"--config=configs/{run.config}",
        f"--workdir={run_folder(name, seed)}",
        f"--config.data.source.path={folder}",
        "--config.data.source.train_folder=train",
        "--config.data.source.validation_folder=test",
        "--config.condition.name=none",
        "--config.prior.model.condition_dropout=0",
        f"--config.stages={run.stages}",
        f"--config.seed={seed}",
        *run.more,
    ]
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def run_folder(name: str, seed: str) -> Path:
    """The workdir of a run."""
    return Path(WORKDIR.value or "").resolve() / f"{name}_{seed}"


def measured(name: str, stage: str, metric: str, best: str = "") -> list[float]:
    """A metric of a stage at the end of its training, of every seed that is trained.

    Args:
        name: of the run.
        stage: of the run.
        metric: with the images that it is of, "validation/psnr".
        best: "min" for the least value that it ever had, in the place of the last.
    """
    found = []
    for seed in SEEDS.value:
        file = run_folder(name, seed) / stage / "metrics.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
        values = [line[metric] for line in lines if metric in line]
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
