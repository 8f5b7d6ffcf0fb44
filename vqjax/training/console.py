"""What a running command says: the log and the progress bar."""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import SupportsFloat

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOGGER_NAME = "vqjax"


def setup_logging(workdir: Path | str, is_main_process: bool = True) -> logging.Logger:
    """Sends the logger "vqjax" to the console and, appending, to `<workdir>/log.txt`.

    A second call replaces the first one's files. On all processes but the main one nothing is
    written to the file and only warnings reach the console.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(console)
    # absl, which parses the commands' flags, puts a console handler of its own on the root.
    logger.propagate = False
    if not is_main_process:
        logger.setLevel(logging.WARNING)
        return logger
    logger.setLevel(logging.INFO)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(Path(workdir) / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    return logger


class ProgressBar:
    """Loss, steps/s, images/s and time left of a training run.

    On a terminal a bar, which log messages scroll past; elsewhere a plain line every `interval`
    seconds. Both go to standard error. On all processes but the main one it shows nothing.
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
            interval: seconds between two plain lines.
        """
        self._name = name
        self._total_steps = total_steps
        self._images_per_step = images_per_step
        self._is_main_process = is_main_process
        self._interval = interval
        self._shown_step = start_step
        self._shown_time = time.monotonic()
        self._bar: tqdm | None = None
        self._log_redirection = contextlib.ExitStack()
        if is_main_process and sys.stderr.isatty():
            self._log_redirection.enter_context(
                logging_redirect_tqdm([logging.getLogger(LOGGER_NAME)])
            )
            self._bar = tqdm(
                desc=name,
                total=total_steps,
                initial=start_step,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
                " [{elapsed}<{remaining}{postfix}]",
            )

    def update(self, step: int, loss: SupportsFloat | None = None) -> None:
        """Shows that `step` updates are done, the last known loss being `loss`."""
        if not self._is_main_process:
            return
        if self._bar is not None:
            rate = self._bar.format_dict["rate"] or 0.0
            self._bar.set_postfix_str(self._describe(loss, rate), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown_time < self._interval and step < self._total_steps:
            return
        rate = (step - self._shown_step) / max(now - self._shown_time, 1e-9)
        self._shown_step, self._shown_time = step, now
        left = tqdm.format_interval((self._total_steps - step) / rate) if rate > 0 else "?"
        print(
            f"{self._name} {step}/{self._total_steps}, {self._describe(loss, rate)}, {left} left",
            file=sys.stderr,
            flush=True,
        )

    def _describe(self, loss: SupportsFloat | None, rate: float) -> str:
        speed = f"{rate:.2f} steps/s, {rate * self._images_per_step:.0f} images/s"
        return speed if loss is None else f"loss {float(loss):.4f}, {speed}"

    def close(self) -> None:
        """Leaves the bar as it stands and gives the console back."""
        if self._bar is not None:
            self._bar.close()
        self._log_redirection.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
