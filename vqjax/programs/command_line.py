"""The command line of all programs: flags with clear errors, help, and errors in one line."""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from vqjax.errors import InputError, TrainingError, did_you_mean
from vqjax.programs.compilation_cache import keep_compiled_programs
from vqjax.training.console import close_logging

_HELP = ("-h", "-help", "--help")


def run(main: Callable[[], None], usage: str | None = None) -> None:
    """Parses the flags and runs a program.

    Wrong input ends it with one line and status 2, a run that cannot go on with one line and
    status 1; anything else is a bug of ours, and shows its traceback.

    Args:
        main: of the program.
        usage: how it is used; --help says it before the flags.
    """
    # It tells at level INFO which accelerators the machine does not have.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    keep_compiled_programs()

    def parse(argv: Sequence[str]) -> list[str]:
        if any(argument in _HELP for argument in argv):
            print(f"{usage or ''}\n{_flags_help()}")
            sys.exit(0)
        try:
            return _parse(argv)
        except (InputError, flags.Error) as e:
            _fail(e, 2)

    def call(argv: Sequence[str]) -> None:
        try:
            main()
        except InputError as e:
            _fail(e, 2)
        except TrainingError as e:
            _fail(e, 1)
        finally:
            close_logging()

    app.run(call, flags_parser=parse)


def read_box(numbers: Sequence[str]) -> tuple[int, int, int, int]:
    """The value of a flag --box=x0,y0,x1,y1.

    Raises:
        InputError: it is not four whole numbers.
    """
    try:
        x0, y0, x1, y1 = (int(number) for number in numbers)
    except ValueError:
        raise InputError(f"--box={','.join(numbers)}: write it as x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _flags_help() -> str:
    """Names, meanings and defaults of the flags that are ours."""
    by_module = flags.FLAGS.flags_by_module_dict()
    # Config files are a flag that ml_collections defines.
    ours = ("vqjax.", "ml_collections.", "__main__")
    own = [flag for name, of in by_module.items() if name.startswith(ours) for flag in of]
    lines = []
    for flag in sorted(own, key=lambda flag: flag.name):
        if not flag.name.startswith("config_"):
            default = "" if flag.default in (None, "", []) else f" [{flag.default_as_str}]"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; a config is first loaded without overrides, to check them against it."""
    overrides = [arg for arg in argv if re.match(r"--?config\.", arg)]
    if overrides:
        _parse_only([arg for arg in argv if arg not in overrides])
        for override in overrides:
            _check_override(override.lstrip("-"), flags.FLAGS.config)
        flags.FLAGS.unparse_flags()
    return _parse_only(argv)


def _parse_only(argv: Sequence[str]) -> list[str]:
    # config_flags looks for overrides in sys.argv, whatever is being parsed.
    sys.argv = list(argv)
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # A config whose file could not be read raises when it is first used.
            flags.FLAGS.config.is_locked  # noqa: B018
    except OSError as e:
        raise InputError(f"--config: {str(e).strip().splitlines()[-1].strip()}") from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: flags look like --name=value")
    return rest


def _check_override(override: str, config: ConfigDict) -> None:
    path, equals, _ = override.partition("=")
    if not equals:
        raise InputError(f"--{path}: write --{path}=value")
    keys = path.split(".")[1:]
    for i, key in enumerate(keys):
        if not isinstance(config, ConfigDict) or key not in config:
            parent = ".".join(["config", *keys[:i]])
            if not isinstance(config, ConfigDict):
                raise InputError(f"--{path}: {parent} is a value and has no keys")
            raise InputError(f"--{path}: no {key!r} in {parent}; {did_you_mean(key, config)}")
        config = config[key]


def _fail(error: Exception, status: int) -> NoReturn:
    print(f"error: {' '.join(line.strip() for line in str(error).splitlines())}", file=sys.stderr)
    sys.exit(status)
