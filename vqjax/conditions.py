"""Conditions: ids that a prior is told of an image, by name. `config.condition.name` picks one.

A condition turns an example of a data set, or what a user types, into `length` ids: of its
vocabulary, [0, num_ids), or the padding id, where there are fewer than `length`. A prior knows the
null id besides, for guidance (`vqjax.priors.condition`). A condition is saved with the run, which
can so be sampled without its data.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from vqjax.errors import InputError, did_you_mean

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

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Condition(abc.ABC):
    """Ids that a prior is told of an image."""

    name: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def of(cls, source: DescribedSource) -> "Condition":
        """The condition of a training set.

        What else a subclass takes, by keyword and with a default, are the fields of
        `config.condition`; it raises FieldError for a value out of its range.
        """

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Ids of an image: 0 for none, 1 for a class, more for a text."""

    @property
    @abc.abstractmethod
    def num_ids(self) -> int:
        """Size of the vocabulary: ids are in [0, num_ids)."""

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
        raise InputError(f"{text}: this run is unconditional; leave the class out")

    def describe(self, ids: Ids) -> str:
        """Nothing."""
        del ids
        return ""

    def in_turn(self, count: int) -> Int[np.ndarray, "{count} 0"]:
        """No ids for each image."""
        return np.zeros((count, 0), np.int32)


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


CONDITIONS: dict[str, type[Condition]] = {"none": NoCondition, "class": ClassCondition}


def ids_in_common(theirs: Condition, ours: Condition) -> dict[int, int]:
    """By our id the one of another condition that means the same: class, null or padding.

    All ids of equal conditions; of others those of classes of one name, the null id and that of
    padding.
    """
    common = {
        null_id(ours.num_ids): null_id(theirs.num_ids),
        padding_id(ours.num_ids): padding_id(theirs.num_ids),
    }
    if ours == theirs:
        return common | {i: i for i in range(ours.num_ids)}
    known = {name: i for i, name in enumerate(theirs.classes)}
    return common | {i: known[name] for i, name in enumerate(ours.classes) if name in known}


def condition_class(name: str | None) -> type[Condition]:
    """The condition of a name.

    Raises:
        InputError: there is none.
    """
    if name not in CONDITIONS:
        raise InputError(f"config.condition.name={name!r}: {did_you_mean(str(name), CONDITIONS)}")
    return CONDITIONS[name]


def to_json(condition: Condition) -> dict[str, Any]:
    """A condition as JSON can hold it."""
    return {"name": condition.name, **dataclasses.asdict(condition)}


def from_json(content: Mapping[str, Any]) -> Condition:
    """The condition that `to_json` was given."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    name = str(fields.pop("name"))
    return condition_class(name)(**fields)
