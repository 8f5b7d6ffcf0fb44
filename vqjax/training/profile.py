"""A trace of a few training steps, for xprof and TensorBoard."""

import contextlib
import logging
import re
from collections.abc import Iterator

import jax
from etils import epath
from jaxtyping import PyTree

from vqjax.errors import InputError
from vqjax.files import StagedFolder

log = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """The steps that config.profile names: "10:13" for 10, 11 and 12; "" for none.

    Raises:
        InputError: it is no such text.
    """
    if not text:
        return range(0)
    bounds = re.fullmatch(r"(\d+):(\d+)", text)
    if bounds is None or not 1 <= int(bounds[1]) < int(bounds[2]):
        raise InputError(
            f"config.profile={text}: START:STOP is needed, like 10:13 for steps 10, 11 and 12; the"
            " first step is 1"
        )
    return range(int(bounds[1]), int(bounds[2]))


class Profiler:
    """Traces some of the steps of a stage into a folder, which xprof and TensorBoard open.

    On all processes but the main one it does nothing.
    """

    def __init__(self, text: str, folder: epath.PathLike, is_main_process: bool = True):
        """Makes nothing yet.

        Args:
            text: see `parse_steps`.
            folder: of the trace, on disk or in a bucket.
            is_main_process: whether to trace.

        Raises:
            InputError: as `parse_steps`.
        """
        self._steps = parse_steps(text)
        if not is_main_process:
            self._steps = range(0)
        self._folder = epath.Path(folder)
        self._staged: StagedFolder | None = None

    @contextlib.contextmanager
    def step(self, step: int, before: PyTree = None) -> Iterator[None]:
        """Goes around the call of a step.

        Args:
            step: number of the step that is called.
            before: arrays of the step before; where a trace begins or ends, they are waited for.
        """
        if self._staged is None and step in self._steps:
            jax.block_until_ready(before)
            self._staged = StagedFolder(self._folder)
            jax.profiler.start_trace(self._staged.local)
        elif self._staged is not None and step not in self._steps:
            jax.block_until_ready(before)
            self.close()
        if self._staged is None:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def close(self) -> None:
        """Ends a trace that has begun."""
        if self._staged is None:
            return
        staged, self._staged, self._steps = self._staged, None, range(0)
        jax.profiler.stop_trace()
        staged.upload()
        log.info("profile of the steps: %s", self._folder)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
