"""Tables on disk with a row an image: they outlive a stopped run, and memory stays flat."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array
from tqdm import tqdm

from vqjax.errors import InputError
from vqjax.files import locked, write_whole

log = logging.getLogger(__name__)

Columns = Mapping[str, tuple[tuple[int, ...], DTypeLike]]

_PROGRESS = "progress.json"


class Rows:
    """A table with a row an image, filled batch by batch; opened again, it goes on.

    Attributes:
        columns: their names.
        batches: how many are there.
        count: how many rows they had.
        finished: whether no more are to come.
    """

    def __init__(self, folder: Path, capacity: int, columns: Columns):
        """Opens the table in `folder`, which is made if it is not there.

        Args:
            folder: of this table alone.
            capacity: the most rows that it may get.
            columns: shape of a row and type of each.
        """
        self.folder = folder
        self.columns = tuple(columns)
        self._shapes = {name: (capacity, *shape) for name, (shape, _) in columns.items()}
        self._dtypes = {name: np.dtype(dtype) for name, (_, dtype) in columns.items()}
        self.batches, self.count, self.finished = 0, 0, False
        folder.mkdir(parents=True, exist_ok=True)
        progress = self._read_progress()
        if progress:
            self.batches, self.count, self.finished = progress
        else:
            # Before the arrays are made anew: they must not be taken for what it tells of.
            (folder / _PROGRESS).unlink(missing_ok=True)
        mode: Any = "r+" if progress else "w+"
        self._arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", mode, self._dtypes[name], self._shapes[name]
            )
            for name in columns
        }

    def append(self, rows: Mapping[str, np.ndarray], finished: bool = False) -> None:
        """Adds the rows of a batch; what is there survives a kill at any moment.

        Raises:
            InputError: a value that is not finite.
        """
        (size,) = {len(values) for values in rows.values()}
        for name, values in rows.items():
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).reshape(size, -1).all(1))[0])
                raise InputError(
                    f"{name} of image {self.count + row} is not finite: the image or a network's"
                    f" weights are broken; the {self.count} images before its batch are kept in"
                    f" {self.folder}"
                )
            self._arrays[name][self.count : self.count + size] = values
            self._arrays[name].flush()
        self.batches, self.count, self.finished = self.batches + 1, self.count + size, finished
        state = {"batches": self.batches, "rows": self.count, "finished": finished}
        write_whole(self.folder / _PROGRESS, json.dumps(state))

    def __getitem__(self, column: str) -> np.ndarray:
        """The rows that are there, mapped from the disk."""
        return self._arrays[column][: self.count]

    def _read_progress(self) -> tuple[int, int, bool] | None:
        """Batches, rows and end that an earlier process has left, if its arrays fit."""
        file = self.folder / _PROGRESS
        if not file.exists():
            return None
        try:
            progress = json.loads(file.read_text())
            for name, shape in self._shapes.items():
                array = np.lib.format.open_memmap(self.folder / f"{name}.npy", "r")
                if array.shape != shape or array.dtype != self._dtypes[name]:
                    raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            return progress["batches"], progress["rows"], progress["finished"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be gone on with (%s): starting it again", self.folder, error)
            return None


def filled(folder: Path, capacity: int, columns: Columns, work: Callable[[Rows], None]) -> Rows:
    """A finished table; another process that works on it is waited for.

    Args:
        folder: see `Rows`.
        capacity: see `Rows`.
        columns: see `Rows`.
        work: appends all rows that are not there yet.
    """
    with locked(folder / ".lock"):
        rows = Rows(folder, capacity, columns)
        if not rows.finished:
            work(rows)
    return rows


def fill(
    rows: Rows,
    batches: Iterable[Mapping[str, np.ndarray]],
    measure: Callable[[np.ndarray], Mapping[str, Array]],
    number: int,
    label: str | None = None,
) -> None:
    """Measures batch after batch until a table has all of them.

    Args:
        rows: the table; the batches that it has are not among `batches`.
        batches: each with "image", further columns of the table, and "valid": which rows count.
        measure: the other columns from the images.
        number: of batches in all.
        label: of a progress bar; None for none.

    Raises:
        InputError: a value that is not finite.
    """
    bar = tqdm(batches, label, number, initial=rows.batches, unit="batch", disable=label is None)
    for batch in bar:
        measured = jax.tree.map(np.asarray, dict(measure(batch["image"])))
        used = {
            name: values[batch["valid"]]
            for name, values in {**batch, **measured}.items()
            if name in rows.columns
        }
        rows.append(used, finished=rows.batches + 1 == number)
