"""Settings: dataclass fields with a meaning and a range.

A settings dataclass is the only list of its settings: config defaults, checks, command-line flags
and the tables of the guide are derived from it. The fields of a model are checked in the same way.
"""

import dataclasses
import math
import numbers
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vqjax.errors import FieldError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a setting may have; finite ones only.

    Attributes:
        lower: the least, or None for none.
        upper: the greatest, or None for none.
        above: `lower` itself is left out.
        below: `upper` itself is left out.
    """

    lower: int | float | None = None
    upper: int | float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: int | float) -> bool:
        """True if a number is in the range."""
        low = self.lower is None or value > self.lower or (value == self.lower and not self.above)
        high = self.upper is None or value < self.upper or (value == self.upper and not self.below)
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        """The range in words."""
        if self.lower is None and self.upper is None:
            return "a finite number"
        if self.upper is None and self.lower == 0:
            return "above 0" if self.above else "0 or more"
        if self.upper is None:
            return f"above {self.lower:g}" if self.above else f"at least {self.lower:g}"
        if self.lower is None:
            return f"below {self.upper:g}" if self.below else f"at most {self.upper:g}"
        ends = "(["[not self.above], ")]"[not self.below]
        return f"a number in {ends[0]}{self.lower:g}, {self.upper:g}{ends[1]}"


def setting(default: Any, meaning: str, within: Range | None = None) -> Any:
    """A field of a settings dataclass or of a model.

    Args:
        default: its value where none is given.
        meaning: in a few words, for help texts.
        within: its range, of a number, or of each item of a tuple.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "range": within})


def check_settings(settings: Any) -> None:
    """Checks all fields of a settings dataclass or a model; to be called by its `__post_init__`.

    Raises:
        FieldError: as `check_values`.
    """
    names = (field.name for field in dataclasses.fields(settings))
    check_values(type(settings), {name: getattr(settings, name) for name in names})


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Checks values of the fields of a dataclass.

    A number has to be in its field's range, and a value to be one of the choices of a Literal; of
    a tuple, each item. None is right where the type has it ("float | None"). A field of type bool
    or str takes nothing else.

    Raises:
        FieldError: for the first value that is out of its range, or none of its choices.
    """
    for field in dataclasses.fields(cls):
        within = field.metadata.get("range")
        if field.name not in values:
            continue
        value = values[field.name]
        if not (within or choices_of(field)):
            for plain, expected in ((bool, "True or False"), (str, "a text")):
                if field.type is plain and not isinstance(value, plain):
                    raise FieldError(f"{field.name}={value!r}: {expected} is needed")
        elif get_origin(field.type) is not tuple:
            _check(f"{field.name}={value!r}", value, field.type, within)
        elif not isinstance(value, tuple):
            raise FieldError(f"{field.name}={value!r}: a list is needed")
        else:
            for item in value:
                _check(f"{field.name} has {item!r}", item, get_args(field.type)[0], within)


def _check(said: str, value: Any, annotation: Any, within: Range | None) -> None:
    """Checks a value; `said` names it in the message."""
    kinds, choices = alternatives(annotation), _choices(annotation)
    if (value is None and type(None) in kinds) or value in choices:
        return
    if within is None:
        raise FieldError(f"{said}: {did_you_mean(str(value), choices)}")
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and value in within):
        expected = " or ".join((str(within), *map(repr, choices)))
        raise FieldError(f"{said}: {expected} is needed")
    if float not in kinds and not isinstance(value, numbers.Integral):
        raise FieldError(f"{said}: a whole number is needed")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a union is made of; a type that is none is the only one."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values of the Literals of a type."""
    literals = [t for t in alternatives(annotation) if get_origin(t) is Literal]
    return tuple(value for literal in literals for value in get_args(literal))


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The values that a field with a Literal type, or an item of its tuple, may have."""
    is_tuple = get_origin(field.type) is tuple
    return _choices(get_args(field.type)[0] if is_tuple else field.type)


def defaults_of(cls: type) -> ConfigDict:
    """The settings of a dataclass with their defaults, as a config has them.

    One whose default is None ("float | None") may be given a value on the command line.
    """
    return ConfigDict(
        {
            field.name: placeholder(get_args(field.type)[0])
            if field.default is None
            else field.default
            for field in dataclasses.fields(cls)
            if field.metadata
        }
    )


def describe_settings(cls: type) -> Mapping[str, str]:
    """By name of each setting: its meaning, range or choices."""
    described = {}
    for field in dataclasses.fields(cls):
        if not field.metadata:
            continue
        within, choices = field.metadata["range"], choices_of(field)
        allowed = " or ".join((*([str(within)] if within else []), *choices))
        described[field.name] = f"{field.metadata['meaning']}{f'; {allowed}' if allowed else ''}"
    return described


def settings_table(cls: type) -> str:
    """A Markdown table of the settings of a dataclass, for the guide."""
    rows = [
        f"| `{field.name}` | `{field.default}` | {describe_settings(cls)[field.name]} |"
        for field in dataclasses.fields(cls)
        if field.metadata
    ]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])
