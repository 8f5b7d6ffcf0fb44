"""The exceptions that a user's input, or a run that cannot go on, raise."""

from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave is wrong: a config value, a file, a folder, a flag.

    The message is one line that names the thing, says what was expected and what to do. The
    command-line programs print it without a traceback and exit with status 2.
    """


class FieldError(InputError):
    """A field of a model or of settings that is out of its range.

    The message begins with "name=value": whoever built the object from a config puts the config's
    path in front of it (`vqjax.registry.build`).
    """


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is one line: why, at which step, and what is safe.

    The command-line programs print it without a traceback and exit with status 1.
    """


def check_fields(owner: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Checks fields of an object.

    Args:
        owner: of the fields.
        checks: name of a field, whether its value will do, and what is expected of it.

    Raises:
        FieldError: for the first value that will not do.
    """
    for name, good, expected in checks:
        if not good:
            raise FieldError(f"{name}={getattr(owner, name)!r}: {expected} is needed")
