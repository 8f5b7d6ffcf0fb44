"""Conditions: ids that a prior is told of an image, by name. `config.condition.name` picks one.

A condition turns an example of a data set, or what a user types, into `length` ids: of its
vocabulary, [0, num_ids), or the padding id, where there are fewer than `length`. A prior knows the
null id besides, for guidance (`vqjax.priors.condition`). A condition is saved with the run, which
can so be sampled without its data.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vqjax.conditions.base import (
    Condition,
    DescribedSource,
    Ids,
    NoCondition,
    null_id,
    padding_id,
)
from vqjax.conditions.captions import CaptionCondition
from vqjax.conditions.classes import ClassCondition
from vqjax.errors import InputError, did_you_mean

__all__ = [
    "CONDITIONS",
    "CaptionCondition",
    "ClassCondition",
    "Condition",
    "DescribedSource",
    "Ids",
    "NoCondition",
    "condition_class",
    "from_json",
    "ids_in_common",
    "null_id",
    "padding_id",
    "to_json",
]

CONDITIONS: dict[str, type[Condition]] = {
    cls.name: cls for cls in (NoCondition, ClassCondition, CaptionCondition)
}


def ids_in_common(theirs: Condition, ours: Condition) -> dict[int, int]:
    """By our id the one of another condition that means the same.

    All ids of equal conditions; of others of the same kind those of one name, classes or tokens;
    the null id and that of padding.
    """
    common = {
        null_id(ours.num_ids): null_id(theirs.num_ids),
        padding_id(ours.num_ids): padding_id(theirs.num_ids),
    }
    if ours == theirs:
        return common | {i: i for i in range(ours.num_ids)}
    if ours.name != theirs.name:
        return common
    known = {name: i for i, name in enumerate(theirs.id_names)}
    return common | {i: known[name] for i, name in enumerate(ours.id_names) if name in known}


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
