"""From a name and fields in a config to an object, with errors that list what is valid."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import flax.linen as nn
from ml_collections import ConfigDict

from vqjax.errors import FieldError, InputError

T = TypeVar("T")


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names, the closest one first where one is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(given, valid, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def build(
    part: str, registry: Mapping[str, type[T]], config: Mapping[str, Any] | ConfigDict, **given: Any
) -> T:
    """Builds `registry[config["name"]]` with the rest of the config as its fields.

    Args:
        part: path of the sub-config, for messages ("tokenizer.model").
        registry: the classes (dataclasses) by name.
        config: a "name" and fields; lists become tuples, as a config read back from JSON has lists.
        given: fields that the program knows and the config may not set.

    Raises:
        InputError: unknown name or field, or a value that the class refuses.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in registry:
        raise InputError(f"config.{part}.name={name!r}: {did_you_mean(str(name), registry)}")
    cls = registry[name]
    return from_fields(part, cls, fields, **given)


def from_fields(part: str, cls: type[T], fields: Mapping[str, Any] | ConfigDict, **given: Any) -> T:
    """Builds a dataclass from a sub-config that has no "name"; otherwise as `build`.

    Raises:
        InputError: unknown field, or a value that the class refuses.
    """
    check_names(part, cls, fields, exclude=given)
    try:
        return cls(**{key: _tuples(value) for key, value in fields.items()}, **given)
    except FieldError as e:
        raise InputError(f"config.{part}.{e}") from None


def check_names(
    part: str,
    cls: type,
    fields: Mapping[str, Any] | ConfigDict,
    exclude: Iterable[str] = (),
) -> None:
    """Checks that the dataclass `cls` has these fields.

    Raises:
        InputError: a key that is no field, or is in `exclude`; a value that is none of those of its
            field, where that is a Literal.
    """
    types = {f.name: f.type for f in dataclasses.fields(cls) if f.init}
    valid = set(types) - set(exclude)
    if issubclass(cls, nn.Module):
        valid -= {"name", "parent"}
    for key, value in fields.items():
        if key not in valid:
            raise InputError(
                f"config.{part}.{key}: {cls.__name__} has no such field; {did_you_mean(key, valid)}"
            )
        if get_origin(types[key]) is Literal and value not in get_args(types[key]):
            hint = did_you_mean(str(value), get_args(types[key]))
            raise InputError(f"config.{part}.{key}={value!r}: {hint}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
