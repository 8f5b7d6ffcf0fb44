"""The contract of a condition, and the one that says nothing."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vqjax.errors import InputError

Ids = Int[np.ndarray, " c"]


def null_id(num_ids: int) -> int:
    """The id that says nothing, of a vocabulary of `num_ids`."""
    return num_ids


def padding_id(num_ids: int) -> int:
    """The id that is not there: masked as a key."""
    return num_ids + 1


@runtime_checkable
class DescribedSource(Protocol):
    """The part of a data source that a condition is made from."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        ...

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The captions of an image."""
        ...

    def name_of(self, index: int) -> str:
        """What an image is called in messages."""
        ...

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Condition(abc.ABC):
    """Ids that a prior is told of an image."""

    name: ClassVar[str]
    # What a user asks for an image by: a flag of sample.py, an argument of `Run.sample`.
    asked_by: ClassVar[Literal["label", "caption"]] = "label"

    @classmethod
    @abc.abstractmethod
    def of(cls, source: DescribedSource) -> "Condition":
        """The condition of a training set.

        What else a subclass takes, by keyword and with a default, are the fields of
        `config.condition`; it raises FieldError for a value out of its range.
        """

    def check(self, source: DescribedSource) -> None:
        """Checks that every image of a set can be told.

        Raises:
            FieldError: an image that cannot; the message names it, and the field to change.
        """
        del source

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Ids of an image: 0 for none, 1 for a class, more for a text."""

    @property
    @abc.abstractmethod
    def num_ids(self) -> int:
        """Size of the vocabulary: ids are in [0, num_ids)."""

    @property
    def id_names(self) -> tuple[str, ...]:
        """What each id stands for, in their order: ids of one name mean the same in two runs."""
        return self.classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes where the condition is the class of an image, else ()."""
        return ()

    @abc.abstractmethod
    def encode(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> Ids:
        """The ids of an example of a data source, int32.

        Args:
            example: of the source; without its image where tokens that were made before are trained
                on.
            rng: for a choice among several texts of an image; None gives the same one each time.
        """

    @abc.abstractmethod
    def parse(self, text: str) -> Ids:
        """The ids of what a user typed, int32.

        Raises:
            InputError: it means nothing; the message lists what does.
        """

    @abc.abstractmethod
    def describe(self, ids: Ids) -> str:
        """The ids in words; "" where there is nothing to say."""

    @abc.abstractmethod
    def in_turn(self, count: int) -> Int[np.ndarray, "{count} c"]:
        """Conditions for images that nobody asked for in particular: all there are, in turn."""


@dataclasses.dataclass(frozen=True)
class NoCondition(Condition):
    """Nothing is told: an unconditional prior."""

    name: ClassVar[str] = "none"
    length: ClassVar[int] = 0
    num_ids: ClassVar[int] = 0

    @classmethod
    def of(cls, source: DescribedSource) -> "NoCondition":
        """No condition, whatever the source."""
        del source
        return cls()

    def encode(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> Ids:
        """No ids."""
        del example, rng
        return np.zeros(0, np.int32)

    def parse(self, text: str) -> Ids:
        """Refuses any text.

        Raises:
            InputError: always.
        """
        raise InputError(f"{text}: this run is unconditional; leave it out")

    def describe(self, ids: Ids) -> str:
        """Nothing."""
        del ids
        return ""

    def in_turn(self, count: int) -> Int[np.ndarray, "{count} 0"]:
        """No ids for each image."""
        return np.zeros((count, 0), np.int32)
