"""The training loop: data -> step -> metrics, pictures, checkpoints; for one stage."""

import functools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vqjax.data import Share, evaluation_batches
from vqjax.data.token_sets import TokenForm
from vqjax.errors import InputError, TrainingError, did_you_mean
from vqjax.files import write_whole
from vqjax.parallel import batch_sharding, global_batch, placed, process_rows, replicated
from vqjax.random_keys import random_key
from vqjax.runs.checkpoints import Checkpointer
from vqjax.training.console import ProgressBar
from vqjax.training.profile import Profiler
from vqjax.training.stage import Pictures, Stage, TrainingData, started_from
from vqjax.training.state import State
from vqjax.training.writer import Writer

log = logging.getLogger(__name__)


# Asked for several times as a stage begins; tracing takes a second or more.
@functools.lru_cache(maxsize=4)
def abstract_state(stage: Stage, mesh: Mesh) -> State:
    """Shapes and shardings of a stage's state."""
    return placed(jax.eval_shape(stage.init, jax.random.key(0)), mesh)


def jit_train_step(stage: Stage, mesh: Mesh, phase: int | None = None) -> Any:
    """`stage.train_step` of a phase (None: the last) jitted on a mesh.

    The old state's memory is given to the new one.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(stage, mesh))
    # On a CPU, checkpoints are written from the very memory that a donated state would be
    # overwritten in.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        functools.partial(stage.train_step, phase=phase),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=() if on_cpu else (0,),
    )


def batch_shapes(
    batch_size: int, resolution: int, length: int, mesh: Mesh, tokens: TokenForm | None = None
) -> dict[str, Any]:
    """Shapes and shardings of a global batch.

    Args:
        batch_size: images of all devices together.
        resolution: side of the images.
        length: of the condition.
        mesh: of `make_mesh`.
        tokens: the form of tokens that the batch has in the place of images.
    """

    def rows(*shape: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh))

    if tokens is None:
        content = {"image": rows(resolution, resolution, 3, dtype=np.uint8)}
    else:
        content = {name: rows(tokens.per_image) for name in tokens.arrays}
    return {**content, "condition": rows(length)}


def train_stage(
    stage: Stage, data: TrainingData, mesh: Mesh, folder: epath.Path, profile: str = ""
) -> None:
    """Trains a stage to its last step, from its last checkpoint where there is one.

    Args:
        stage: what to train.
        data: to train on.
        mesh: devices.
        folder: of the stage; gets checkpoints, metrics and pictures.
        profile: steps to be traced, see `vqjax.training.profile.parse_steps`.

    Raises:
        InputError: something in the config or the folder does not fit.
        TrainingError: a loss is not finite, or the run was told to stop.
    """
    settings = stage.settings
    rows = process_rows(mesh, settings.batch_size)
    # Processes whose devices differ only along "tensor" load the same share.
    share = Share(int(rows[0]) // len(rows), settings.batch_size // len(rows))
    main = jax.process_index() == 0
    checkpointer = Checkpointer(
        folder / "checkpoints",
        keep=settings.keep_checkpoints,
        best_metric=settings.best_metric or None,
        best_mode=settings.best_mode,
    )
    shapes = abstract_state(stage, mesh)
    # A finished stage is read too: its last checkpoint may have been damaged since.
    restored = checkpointer.restore(shapes)
    if restored is not None and restored[1] >= settings.steps:
        log.info("%s: finished already (step %d)", stage.name, restored[1])
        checkpointer.close()
        return
    if restored is None:
        state, start = first_state(stage, mesh), 0
    else:
        state, start = restored
        log.info("%s: going on from step %d", stage.name, start)
    frozen = stage.load_frozen(placed(stage.frozen_shapes(), mesh))
    if main and start == 0:
        _write_overview(folder, stage, shapes)

    key = stage.training_key
    # Phases may alternate; each has one program.
    train_step_of = functools.cache(functools.partial(jit_train_step, stage, mesh))
    begun = {stage.phase(start)}
    to_devices = functools.partial(global_batch, mesh=mesh)
    batches = stage.training_batches(data, frozen, to_devices, start_step=start, share=share)

    began = time.monotonic()
    window: list[dict[str, float]] = []
    pending: dict[str, Any] | None = None
    with (
        closing(batches),
        Writer(folder, start, main) as writer,
        ProgressBar(stage.name, settings.steps, start, settings.batch_size, main) as bar,
        Profiler(profile, folder / "profile", main) as profiler,
        _stop_requests() as stop_requested,
    ):
        for step in range(start + 1, settings.steps + 1):
            batch = next(batches)
            phase = stage.phase(step - 1)
            if phase not in begun:
                begun.add(phase)
                log.info("%s: phase %d begins with step %d", stage.name, phase, step)
            state, between = stage.between_steps(state, step - 1, data, frozen, to_devices, share)
            if between:
                # At once, so that what broke first is named: the step before, or this.
                for number, values in ((step - 1, pending), (step, between)):
                    _finite(stage, number, values or {}, checkpointer, folder)
            with profiler.step(step, pending):
                state, metrics = train_step_of(phase)(state, frozen, to_devices(batch), key)
            # Metrics are read one step late, so that the device never waits for the host.
            if pending is not None:
                window.append(_finite(stage, step - 1, pending, checkpointer, folder))
                bar.update(step - 1, window[-1]["loss"])
            pending = metrics | between
            if step == start + 1:
                jax.block_until_ready(metrics)
                log.info("%s: first step after %.0f s", stage.name, time.monotonic() - began)

            last = step == settings.steps
            stopping = stop_requested(step)
            log_now = last or step % settings.log_every == 0
            evaluate_now = last or step % settings.eval_every == 0
            save_now = last or stopping or step % settings.checkpoint_every == 0
            if log_now or evaluate_now or save_now:
                # Nothing is written of a state that is not known to be sound.
                window.append(_finite(stage, step, pending, checkpointer, folder))
                bar.update(step, window[-1]["loss"])
                pending = None
            if log_now:
                means = _means(window)
                writer.scalars(step, {f"train/{name}": mean for name, mean in means.items()})
                window = []
            evaluation = None
            if evaluate_now:
                held_out = evaluation_batches(
                    data.validation,
                    data.condition,
                    data.settings,
                    batch_size=settings.batch_size,
                    limit=settings.eval_images,
                    share=share,
                )
                evaluation, pictures = stage.evaluate(state, frozen, held_out, to_devices)
                _write_evaluation(writer, stage, step, evaluation, pictures)
            # Nothing would ever be the best.
            unknown = evaluation and settings.best_metric and settings.best_metric not in evaluation
            if save_now or unknown:
                writer.flush()
                checkpointer.save(step, state, evaluation)
            if evaluation and unknown:
                checkpointer.close()
                meant = did_you_mean(settings.best_metric, evaluation)
                raise InputError(
                    f"config.{stage.name}.best_metric={settings.best_metric}: {meant}; step {step}"
                    " is saved, go on from it with --accept_config_changes"
                )
            if stopping:
                break
        checkpointer.close()
        if stop_requested(step):
            raise TrainingError(
                f"{stage.name}: stopped by a signal; step {step} is saved in {folder}:"
                " run the same command to go on"
            )
    seconds = time.monotonic() - began
    log.info("%s: steps %d to %d took %.0f s", stage.name, start, settings.steps, seconds)


def first_state(stage: Stage, mesh: Mesh) -> State:
    """The state before the first step: fresh, but for the weights that it starts from."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(stage, mesh))
    key = random_key(stage.seed, f"{stage.name}/init", 0)
    state = jax.jit(stage.init, out_shardings=shardings)(key)
    return started_from(state, stage.load_start(state.model.variables))


def _finite(
    stage: Stage,
    step: int,
    metrics: dict[str, Any],
    checkpointer: Checkpointer,
    folder: epath.Path,
) -> dict[str, float]:
    """A step's metrics on the host; waits for that step.

    Raises:
        TrainingError: one is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        # The term that broke comes before the sum and the gradient that it broke.
        broken.sort(key=lambda name: name in ("loss", "gradient_norm"))
        listed = ", ".join(f"{name} is {values[name]}" for name in broken)
        checkpointer.close()
        good = checkpointer.latest_step
        safe = "none" if good is None else f"step {good}"
        raise TrainingError(
            f"{stage.name}: step {step}: {listed}; the last good checkpoint is {safe} in"
            f" {folder}: lower the learning rate or set clip_norm, and go on from it with"
            " --accept_config_changes"
        )
    return values


def _write_evaluation(
    writer: Writer, stage: Stage, step: int, metrics: dict[str, float], pictures: Pictures
) -> None:
    writer.scalars(step, {f"validation/{name}": value for name, value in metrics.items()})
    for name, grid in pictures.items():
        writer.images(step, name, grid)
    writer.flush()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    log.info("%s: step %d, validation: %s", stage.name, step, shown)


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over those steps since the last log that have it."""
    values: dict[str, list[float]] = {}
    for metrics in window:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return {name: sum(xs) / len(xs) for name, xs in values.items()}


def _write_overview(folder: epath.Path, stage: Stage, shapes: State) -> None:
    """The table of parameters, to a file and in short to the log."""
    params = shapes.model.params
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_whole(folder / "parameters.txt", table + "\n")
    total = sum(x.size for x in jax.tree.leaves(params))
    log.info("%s: %s parameters (table: %s)", stage.name, f"{total:,}", folder / "parameters.txt")


@contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and SIGINT into a question asked after each step."""
    if jax.process_count() > 1:
        # All processes have to stop after the same step; JAX catches SIGTERM and agrees on one.
        yield multihost_utils.reached_preemption_sync_point
        return
    requested: list[int] = []

    def request(number: int, frame: Any) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield lambda step: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
