"""The class of an image as its condition."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from vqjax.conditions.base import Condition, DescribedSource, Ids
from vqjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClassCondition(Condition):
    """The class of an image.

    Attributes:
        class_names: in the order of their ids.
    """

    class_names: tuple[str, ...]

    name: ClassVar[str] = "class"
    length: ClassVar[int] = 1

    @classmethod
    def of(cls, source: DescribedSource) -> "ClassCondition":
        """The classes of a training set."""
        return cls(tuple(source.class_names))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.class_names

    @property
    def num_ids(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def encode(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> Ids:
        """The label of an example."""
        del rng
        return np.array([example["label"]], np.int32)

    def parse(self, text: str) -> Ids:
        """The class of that name, or of that number.

        Raises:
            InputError: there is none.
        """
        if text in self.classes:
            return np.array([self.classes.index(text)], np.int32)
        if text.isdecimal() and int(text) < self.num_ids:
            return np.array([int(text)], np.int32)
        listed = ", ".join(self.classes[:20]) + (", ..." if self.num_ids > 20 else "")
        raise InputError(f"{text}: give a number from 0 to {self.num_ids - 1}, or one of: {listed}")

    def describe(self, ids: Ids) -> str:
        """Name of the class."""
        return self.classes[int(ids[0])]

    def in_turn(self, count: int) -> Int[np.ndarray, "{count} 1"]:
        """All classes in turn."""
        return (np.arange(count, dtype=np.int32) % self.num_ids)[:, None]
