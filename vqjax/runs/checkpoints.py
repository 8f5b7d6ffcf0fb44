"""Checkpoints of a training state, the newest few and the best; all of Orbax is here."""

import dataclasses
import functools
import itertools
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from vqjax.errors import InputError
from vqjax.files import absolute, is_remote
from vqjax.parallel import leaf_path

log = logging.getLogger(__name__)

Which: TypeAlias = Literal["last", "best"]

# Items in the folder of a step.
_STATE = "state"
_METRICS = "evaluation"
_MAX_DIFFERENCES = 4


class Checkpointer:
    """Saves and restores the state of one training stage in one folder.

    On several hosts every process makes one, on a folder that all of them see, and calls the same
    methods.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "max",
        asynchronous: bool = True,
        read_only: bool = False,
    ):
        """Opens a folder, and makes it unless `read_only`.

        Args:
            folder: on disk, or in a bucket (gs://...).
            keep: how many of the newest checkpoints stay, at least 1.
            best_metric: the key in the saved metrics by which one more stays, however old.
            best_mode: whether the best is the smallest or the largest.
            asynchronous: `save` returns once the state is copied, and the rest happens in the
                background.
            read_only: for looking at a run from outside; nothing is written, moved or deleted.

        Raises:
            InputError: keep is less than 1, or an unknown best_mode.
        """
        if keep < 1:
            raise InputError(f"keep={keep}: at least 1 checkpoint has to be kept")
        if best_mode not in ("min", "max"):
            raise InputError(f"best_mode={best_mode!r}: valid: min, max")
        _quieten_orbax()
        self._best_metric = best_metric
        self._best_mode = best_mode
        self._read_only = read_only
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(keep), _Only(self._best_of)]
        )
        self._manager = ocp.CheckpointManager(
            absolute(folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                enable_async_checkpointing=asynchronous,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        self._folder = self._manager.directory
        self._scores = {step: self._score(self._saved_metrics(step)) for step in self._steps}

    def save(
        self, step: int, state: PyTree, metrics: Mapping[str, float | np.floating] | None = None
    ) -> None:
        """Saves the state of a step; a step that is already saved is left as it is.

        Args:
            step: optimizer steps so far.
            state: a pytree of arrays, on any devices. Its buffers may be donated as soon as this
                returns.
            metrics: scalars of this step; saved beside the state, and `best_metric` is looked up in
                them.

        Raises:
            Exception: what broke the writing of the previous checkpoint in the background.
        """
        if step in self._steps:
            return
        scalars = {name: float(value) for name, value in (metrics or {}).items()}
        self._scores[step] = self._score(scalars)
        items = ocp.args.Composite(
            **{
                _STATE: ocp.args.PyTreeSave(_nested(_named_leaves(state))),
                _METRICS: ocp.args.JsonSave(scalars),
            }
        )
        self._manager.save(step, args=items, force=True)

    @property
    def latest_step(self) -> int | None:
        """The newest saved step; None if there is none."""
        return max(self._steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The saved step with the best finite `best_metric`, of equals the newest; or None."""
        return self._best_of(self._steps)

    def restore(
        self, abstract_state: PyTree[jax.ShapeDtypeStruct], which: Which = "last"
    ) -> tuple[PyTree, int] | None:
        """The state of the newest or of the best checkpoint that can be read, and its step.

        A damaged checkpoint is named in a warning, moved aside to `damaged_<step>`, and the next
        older (or next best) one is used.

        Args:
            abstract_state: shapes and dtypes of all of the state, and on which devices each array
                is to be (without a
                sharding: on the first device), which need not be those it was saved from.
            which: with "best" and no metric on record, the last one.

        Returns:
            None if nothing was ever saved.

        Raises:
            InputError: the checkpoint is of another configuration, or none can be read.
        """
        return self._restore(abstract_state, which, partial=False)

    def restore_partial(
        self, abstract_part: PyTree[jax.ShapeDtypeStruct], which: Which = "last"
    ) -> tuple[PyTree, int] | None:
        """As `restore`, of a part of the state; the rest is not read.

        Args:
            abstract_part: a tree (of dicts, say) whose leaves have the paths that they had in the
                state: `{"model": {"params": ...}}` for `state.model.params`.
            which: as for `restore`.
        """
        return self._restore(abstract_part, which, partial=True)

    def saved_shapes(self, which: Which = "last") -> dict[str, jax.ShapeDtypeStruct] | None:
        """What there is in the checkpoint that `restore` tries first, by its path in the state.

        One whose list of arrays is damaged is passed over.

        Args:
            which: as for `restore`.

        Returns:
            None if nothing was ever saved, or nothing can be read.
        """
        self.wait()
        for step in self._candidates(which):
            try:
                saved = self._saved(step)
            # Damage shows as anything from a KeyError to a bare Exception.
            except Exception:
                continue
            return {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()
            }
        return None

    def wait(self) -> None:
        """Blocks until everything is written.

        Raises:
            Exception: what broke the writing in the background.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()

    @property
    def _steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def _restore(
        self, abstract: PyTree[jax.ShapeDtypeStruct], which: Which, *, partial: bool
    ) -> tuple[PyTree, int] | None:
        self.wait()
        damaged: dict[int, str] = {}
        for step in self._candidates(which):
            state, error = None, ""
            try:
                state = self._read(step, abstract, partial)
            except InputError:
                raise
            # Damage shows as anything from a KeyError to a bare Exception.
            except Exception as e:
                error = f"{type(e).__name__}: {' '.join(str(e).split()):.150}"
            if _on_all_processes(not error):
                self._set_aside(damaged, step)
                return state, step
            damaged[step] = error or "another process cannot read it"
        if not damaged:
            return None
        step, error = next(iter(damaged.items()))
        raise InputError(
            f"{self._folder}: none of its checkpoints ({', '.join(map(str, damaged))}) can be read "
            f"({step}: {error}); bring the folder back from a backup, "
            "or delete it to start this stage again"
        )

    def _candidates(self, which: Which) -> list[int]:
        """Steps in the order to try them."""
        candidates = sorted(self._steps, reverse=True)
        if which == "best":
            candidates.sort(key=lambda step: self._scores[step], reverse=True)
        return candidates

    def _read(self, step: int, abstract: PyTree[jax.ShapeDtypeStruct], partial: bool) -> PyTree:
        saved = self._saved(step)
        wanted = _named_leaves(abstract)
        differences = _differences(saved, wanted, partial)
        if differences:
            more = len(differences) - _MAX_DIFFERENCES
            listed = "; ".join(differences[:_MAX_DIFFERENCES])
            raise InputError(
                f"checkpoint {step} in {self._folder} is of another configuration: {listed}"
                f"{f'; and {more} more' if more > 0 else ''}; use the config it was trained with, "
                "or another workdir"
            )
        target = _nested({name: _placed(leaf) for name, leaf in wanted.items()})
        restored = ocp.PyTreeCheckpointHandler().restore(
            self._folder / str(step) / _STATE,
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=partial,
            ),
        )
        leaves = _named_leaves(restored)
        return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in wanted])

    def _saved(self, step: int) -> dict[str, Any]:
        """Metadata of a step's arrays by path."""
        folder = self._folder / str(step) / _STATE
        return _named_leaves(ocp.PyTreeCheckpointHandler().metadata(folder).tree)

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step, error in damaged.items():
                moved = "" if self._read_only else f", the damaged one is now {self._rename(step)}"
                log.warning(
                    f"checkpoint {step} in {self._folder} is damaged ({error}): "
                    f"using {used} instead{moved}"
                )
        if not self._read_only:
            _on_all_processes(True)
            self._manager.reload()

    def _rename(self, step: int) -> str:
        """Takes a step's folder out of the way of another save; its new name."""
        names = (f"damaged_{step}{f'_{n}' if n else ''}" for n in itertools.count())
        name = next(name for name in names if not (self._folder / name).exists())
        (self._folder / str(step)).rename(self._folder / name)
        return name

    def _saved_metrics(self, step: int) -> Mapping[str, float]:
        """The metrics of a step; none if they cannot be read, as the state may be sound."""
        try:
            return ocp.JsonCheckpointHandler().restore(self._folder / str(step) / _METRICS)
        except (OSError, ValueError):
            return {}

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Larger is better; -inf where there is no finite metric."""
        value = metrics.get(self._best_metric, math.nan) if self._best_metric else math.nan
        if not math.isfinite(value):
            return -math.inf
        return value if self._best_mode == "max" else -value

    def _best_of(self, steps: Sequence[int]) -> int | None:
        best = max(steps, key=lambda step: (self._scores[step], step), default=None)
        return None if best is None or self._scores[best] == -math.inf else best


@dataclasses.dataclass
class _Only(checkpoint_managers.PreservationPolicy):
    """Keeps one step. Orbax's BestN would not start where one metrics file is damaged."""

    choose: Callable[[Sequence[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        chosen = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == chosen for checkpoint in checkpoints]


def saved_steps(folder: epath.Path) -> list[int]:
    """The steps that are saved in a folder, as it stands: nothing is opened or waited for."""
    if not folder.is_dir():
        return []
    # In a bucket nothing is renamed: there a file says that a checkpoint is complete.
    return sorted(
        int(step.name)
        for step in folder.iterdir()
        if step.name.isdigit() and (not is_remote(folder) or (step / "commit_success.txt").exists())
    )


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path: what is stored does not depend on the classes that the state is made of."""
    return {leaf_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], partial: bool) -> list[str]:
    def describe(leaf: Any) -> str:
        return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"

    differences = []
    for name in sorted({*wanted} if partial else {*saved, *wanted}):
        if name not in wanted:
            differences.append(f"{name} is only in the checkpoint")
        elif name not in saved:
            differences.append(f"{name} is not in the checkpoint")
        elif describe(saved[name]) != describe(wanted[name]):
            differences.append(
                f"{name} is {describe(saved[name])} in the checkpoint, "
                f"{describe(wanted[name])} here"
            )
    return differences


def _on_all_processes(fine: bool) -> bool:
    """True if it is so on every process; also a barrier."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


@functools.cache
def _quieten_orbax() -> None:
    """Leaves what Orbax has to say to its exceptions, which say the same.

    It logs every step through absl's logger. And where one of its concurrent reads fails it drops
    the others, about each of which Python would print a page when it is collected.
    """
    logging.getLogger("absl").addFilter(lambda record: not _of_orbax(record.pathname))
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped_read = code is not None and _of_orbax(code.co_filename)
        if not dropped_read and str(unraisable.exc_value) != "Event loop is closed":
            previous_hook(unraisable)

    sys.unraisablehook = hook


def _of_orbax(source_file: str) -> bool:
    return f"{os.sep}orbax{os.sep}" in source_file
