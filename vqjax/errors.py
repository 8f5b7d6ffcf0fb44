"""The one exception that a user's input raises."""


class InputError(Exception):
    """Something the user gave is wrong: a config value, a file, a folder, a flag.

    The message is one line that names the thing, says what was expected and what to do. The
    command-line programs
    print it without a traceback and exit with status 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is one line: why, at which step, and what is safe.

    The command-line programs print it without a traceback and exit with status 1.
    """
