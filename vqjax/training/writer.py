"""Metrics and pictures of a stage, for a person to look at."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from vqjax.files import StagedFolder, write_png, write_whole


class Writer:
    """Writes a stage's metrics and pictures: TensorBoard events, JSON lines and PNG files.

    Step numbers count finished updates. A run that goes on from step s continues the same files
    as if it had never stopped: what they say of later steps is dropped, and at s = 0 everything.
    In a bucket, metrics and events arrive with each `flush`, pictures at once. On all processes but
    the main one nothing is written.
    """

    def __init__(
        self, folder: epath.PathLike, start_step: int = 0, is_main_process: bool = True
    ) -> None:
        """Opens the files in `folder`, which is made if it is not there."""
        self._folder = epath.Path(folder)
        self._is_main_process = is_main_process
        if not is_main_process:
            return
        self._staged = StagedFolder(folder, resumed=["metrics.jsonl"])
        first_step = start_step + 1 if start_step > 0 else 0
        metrics_file = self._staged.local / "metrics.jsonl"
        _drop_lines_from(metrics_file, first_step)
        self._metrics = metrics_file.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(self._staged.local), purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes one line of `metrics.jsonl` and one TensorBoard point for each value.

        A value that is not finite is null in the JSON line, which has no such number.
        """
        if not self._is_main_process:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._metrics.write(json.dumps({"step": step, **line}) + "\n")
        self._metrics.flush()
        for name, number in numbers.items():
            self._tensorboard.add_scalar(name, number, step)

    def images(self, step: int, name: str, grid: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes `pictures/<name>_<step>.png` and the same picture to TensorBoard."""
        if not self._is_main_process:
            return
        write_png(self._folder / "pictures" / f"{name}_{step:07d}.png", grid)
        self._tensorboard.add_image(name, grid, step, dataformats="HWC")

    def flush(self) -> None:
        """Puts TensorBoard's events, and in a bucket all metrics, beside what is there already."""
        if self._is_main_process:
            self._tensorboard.flush()
            self._staged.upload()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._is_main_process:
            self._metrics.close()
            self._tensorboard.close()
            self._staged.upload()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _drop_lines_from(file: Path, first_step: int) -> None:
    """Removes the lines of `first_step` and later, and one that a kill cut short."""
    if not file.exists():
        return
    kept = [
        line
        for line in file.read_bytes().splitlines(keepends=True)
        if (step := _step_of(line)) is not None and step < first_step
    ]
    write_whole(file, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
