"""A source of random images, by number."""

import dataclasses
import multiprocessing
import sys

import numpy as np

from vqjax.conditions import ClassCondition
from vqjax.data import BrokenImageError

NUMBERS = ClassCondition(tuple(map(str, range(10))))


@dataclasses.dataclass
class Numbered:
    """Image i has the label i, a size of its own, and random pixels that depend on i alone."""

    count: int = 10
    broken: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ("number",)
    fingerprint: str = "numbers"
    reads: list = dataclasses.field(default_factory=list)

    def prepare(self): ...

    def captions_of(self, index):
        return ()

    def name_of(self, index):
        return str(index)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise BrokenImageError(f"number {index} is broken")
        in_worker = multiprocessing.parent_process() is not None
        if in_worker and "jax" in sys.modules:
            from jax._src import xla_bridge

            assert not xla_bridge.backends_are_initialized()
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (24 + index, 40 - index, 3), np.uint8)
        return {"image": pixels, "label": index, "captions": (), "name": str(index)}
