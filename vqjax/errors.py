"""The exceptions that a user's input, or a run that cannot go on, raise; and their sentences."""

import difflib
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


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names, the closest one first where one is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(given, valid, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def check_fields(owner: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Checks of the fields of an object what no range can say: conditions between them.

    Args:
        owner: of the fields.
        checks: name of a field, whether its value will do, and what is expected of it.

    Raises:
        FieldError: for the first value that will not do.
    """
    for name, good, expected in checks:
        if not good:
            raise FieldError(f"{name}={getattr(owner, name)!r}: {expected} is needed")
