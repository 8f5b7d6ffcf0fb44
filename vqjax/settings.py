"""Settings: dataclass fields with a meaning and a range.

A settings dataclass is the only list of its settings: config defaults, checks, command-line flags
and the tables of the guide are derived from it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vqjax.errors import FieldError
from vqjax.registry import did_you_mean


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
    """A field of a settings dataclass.

    Args:
        default: its value where none is given.
        meaning: in a few words, for help texts.
        within: its range, of a number.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "range": within})


def check_settings(settings: Any) -> None:
    """Checks all fields of a settings dataclass; to be called by its `__post_init__`.

    A field whose default is None may be None, whatever its range.

    Raises:
        FieldError: for the first value that is out of its range, or none of its choices.
    """
    for field in dataclasses.fields(settings):
        value, within = getattr(settings, field.name), field.metadata.get("range")
        choices = choices_of(field)
        if choices and value not in choices:
            raise FieldError(f"{field.name}={value!r}: {did_you_mean(str(value), choices)}")
        if within is None or (value is None and field.default is None):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and value in within):
            raise FieldError(f"{field.name}={value!r}: {within} is needed")
        if field.type is int and not isinstance(value, int):
            raise FieldError(f"{field.name}={value!r}: a whole number is needed")


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The values that a field with a Literal type may have; none of another type."""
    return get_args(field.type) if get_origin(field.type) is Literal else ()


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
        allowed = field.metadata["range"] or " or ".join(choices_of(field))
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
