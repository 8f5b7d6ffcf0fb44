"""The console of a running command: its log and its progress bar."""

import contextlib
import logging
import math
import sys
import time
from typing import Any, SupportsFloat

from etils import epath
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vqjax.files import StagedFolder

LOGGER_NAME = "vqjax"
# Seconds between two uploads of a log in a bucket, which is written whole each time.
_UPLOAD_EVERY = 30.0


def setup_logging(workdir: epath.PathLike, is_main_process: bool = True) -> logging.Logger:
    """Sends the logger "vqjax" to the console and, appending, to `<workdir>/log.txt`.

    A second call replaces the first one's files. On all processes but the main one nothing is
    written to the file and only warnings reach the console.
    """
    logger = logging.getLogger(LOGGER_NAME)
    close_logging()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(console)
    # absl, which parses the commands' flags, puts a console handler of its own on the root.
    logger.propagate = False
    if not is_main_process:
        logger.setLevel(logging.WARNING)
        return logger
    logger.setLevel(logging.INFO)
    file = _LogFile(workdir)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    return logger


def close_logging() -> None:
    """Closes what `setup_logging` opened; the last lines of a log in a bucket arrive now."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """The file log.txt of a folder."""

    def __init__(self, folder: epath.PathLike):
        self._staged = StagedFolder(folder, resumed=["log.txt"])
        self._uploaded = -math.inf
        super().__init__(self._staged.local / "log.txt", encoding="utf-8")

    def flush(self) -> None:
        """Called after each message."""
        super().flush()
        if time.monotonic() - self._uploaded >= _UPLOAD_EVERY:
            self._staged.upload()
            self._uploaded = time.monotonic()

    def close(self) -> None:
        super().close()
        self._staged.upload()


class ProgressBar:
    """Loss, steps/s, images/s and time left of a training run.

    On a terminal a bar, which log messages scroll past; elsewhere a line every `interval` seconds
    and at the end. Both go to standard error. On all processes but the main one it shows nothing.
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        start_step: int,
        images_per_step: int,
        is_main_process: bool = True,
        interval: float = 30.0,
    ) -> None:
        """Starts the clock.

        Args:
            name: what is being trained.
            total_steps: the step at which the run is done.
            start_step: the step that it goes on from.
            images_per_step: the global batch.
            is_main_process: whether to show anything.
            interval: seconds between two lines where there is no terminal.
        """
        terminal = sys.stderr.isatty()
        self._log_redirection = contextlib.ExitStack()
        if is_main_process and terminal:
            self._log_redirection.enter_context(
                logging_redirect_tqdm([logging.getLogger(LOGGER_NAME)])
            )
        self._bar = _Bar(
            desc=name,
            total=total_steps,
            initial=start_step,
            file=sys.stderr,
            disable=not is_main_process,
            leave=terminal,
            **(_TERMINAL if terminal else _LINES | {"mininterval": interval, "delay": interval}),
        )
        self._bar.images_per_step = images_per_step

    def update(self, step: int, loss: SupportsFloat | None = None) -> None:
        """Shows that `step` updates are done, the last known loss being `loss`."""
        self._bar.loss = "" if loss is None else f"loss {float(loss):.4f}, "
        shown = self._bar.update(step - self._bar.n)
        if step == self._bar.total and not shown:
            self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it stands and gives the console back."""
        self._bar.close()
        self._log_redirection.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_TERMINAL = {
    "bar_format": "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
    " [{elapsed}<{remaining}, {loss}{speed}]",
    "dynamic_ncols": True,
}
_LINES = {"bar_format": "{desc} {n_fmt}/{total_fmt}, {loss}{speed}, {remaining} left"}


class _Bar(tqdm):
    """A bar that knows loss and images/s; off a terminal, one whose every state is a line."""

    images_per_step = 0
    loss = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values for `bar_format`."""
        known = super().format_dict
        elapsed = known["elapsed"]
        rate = known["rate"] or ((self.n - self.initial) / elapsed if elapsed else 0.0)
        speed = f"{rate:.2f} steps/s, {rate * self.images_per_step:.0f} images/s"
        return known | {"loss": self.loss, "speed": speed}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar; off a terminal, where none is left to stand, prints its line."""
        if self.leave:
            return super().display(msg, pos)
        if msg is None:
            print(self, file=self.fp, flush=True)
        return False
