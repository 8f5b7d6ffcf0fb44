"""From a name and fields in a config to an object, with errors that list what is valid."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vqjax.errors import InputError

T = TypeVar("T")


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names, the closest one first where one is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(given, valid, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def build(part: str, registry: Mapping[str, type[T]], config: Mapping[str, Any], **given: Any) -> T:
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
    part: str, cls: type, fields: Mapping[str, Any], exclude: Iterable[str] = ()
) -> None:
    """Raises InputError for a key that is no field of the dataclass `cls`, or is in `exclude`."""
    valid = {f.name for f in dataclasses.fields(cls) if f.init} - {"name", "parent", *exclude}
    for key in fields:
        if key not in valid:
            raise InputError(
                f"config.{part}.{key}: {cls.__name__} has no such field; {did_you_mean(key, valid)}"
            )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
