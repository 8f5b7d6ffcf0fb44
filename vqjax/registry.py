"""From a name and fields in a config to an object, with errors that list what is valid."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from ml_collections import ConfigDict

from vqjax.errors import InputError

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
        InputError: unknown name or field.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in registry:
        raise InputError(f"config.{part}.name={name!r}: {did_you_mean(str(name), registry)}")
    cls = registry[name]
    check_fields(part, cls, fields, exclude=given)
    return cls(**{key: _tuples(value) for key, value in fields.items()}, **given)


def check_fields(
    part: str,
    cls: type,
    fields: Mapping[str, Any] | ConfigDict,
    exclude: Iterable[str] = (),
) -> None:
    """Checks that the dataclass `cls` can be built with these fields.

    Raises:
        InputError: a key that is no field, or is in `exclude`; a value that is none of those of its
            field, where that is a Literal.
    """
    types = {f.name: f.type for f in dataclasses.fields(cls) if f.init}
    valid = set(types) - {"name", "parent", *exclude}
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
