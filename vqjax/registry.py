"""From a name and fields in a config to an object, with errors that list what is valid."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import flax.linen as nn
from ml_collections import ConfigDict

from vqjax.errors import FieldError, InputError, did_you_mean
from vqjax.settings import check_values

T = TypeVar("T")


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
    values = {key: _tuples(value) for key, value in fields.items()}
    with named_in(part):
        # Before the class sees them, which may count on their types.
        check_values(cls, values)
        return cls(**values, **given)


@contextlib.contextmanager
def named_in(part: str) -> Iterator[None]:
    """Puts the path of a sub-config in front of the field that an error inside names.

    Raises:
        InputError: in the place of a FieldError.
    """
    try:
        yield
    except FieldError as e:
        raise InputError(f"config.{part}.{e}") from None


def check_names(
    part: str,
    cls: type,
    fields: Iterable[str],
    exclude: Iterable[str] = (),
) -> None:
    """Checks that the dataclass `cls` has these fields.

    Raises:
        InputError: a key that is no field, or is in `exclude`.
    """
    valid = {f.name for f in dataclasses.fields(cls) if f.init} - set(exclude)
    if issubclass(cls, nn.Module):
        valid -= {"name", "parent"}
    for key in fields:
        if key not in valid:
            raise InputError(
                f"config.{part}.{key}: {cls.__name__} has no such field; {did_you_mean(key, valid)}"
            )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
