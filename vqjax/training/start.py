"""The start of a stage from trained weights of a model that may differ: which arrays are taken."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from vqjax.conditions import Condition, ids_in_common
from vqjax.errors import InputError
from vqjax.nn.positions import stretched
from vqjax.parallel import leaf_path, replicated
from vqjax.quantizers import STATE
from vqjax.runs.stages import TrainedStage
from vqjax.runs.weights import load_weights, saved_variables

# Arrays, or their shapes, of {"params": ..., **collections} by path.
Leaves = Mapping[str, Any]


class Taken(NamedTuple):
    """How an array begins that is made of other ones.

    Attributes:
        sources: paths of the other model's arrays.
        make: of the fresh array and those, jitted; None where the only one is taken as it is.
        note: what is to be told of it, or "".
    """

    sources: tuple[str, ...]
    make: Callable[..., Any] | None = None
    note: str = ""


# (our shapes, theirs) -> for the arrays that it decides on, how they begin; None stays fresh.
Rule = Callable[[Leaves, Leaves], Mapping[str, Taken | None]]


@dataclasses.dataclass(frozen=True)
class Start:
    """A start from another stage's weights.

    Attributes:
        source: the other stage.
        taken: by path what is taken; all else is fresh.
        ours: shapes of the variables here.
        theirs: shapes of the variables there.
    """

    source: TrainedStage
    taken: Mapping[str, Taken]
    ours: Leaves
    theirs: Leaves

    def load(self, fresh: Any) -> Any:
        """The variables to start from.

        Args:
            fresh: variables {"params": ..., **collections}, on a mesh; those that are not taken
                stay.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        mesh = jax.tree.leaves(fresh)[0].sharding.mesh
        leaves = leaves_by_path(fresh)
        wanted = {}
        for path, taken in self.taken.items():
            for source in taken.sources:
                placing = replicated(mesh) if taken.make else leaves[path].sharding
                shape = self.theirs[source]
                wanted[source] = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placing)
        loaded, _ = load_weights(self.source, {"params": {}, **unflatten_dict(wanted, sep="/")})
        found = leaves_by_path(loaded)

        def begin(path: tuple, leaf: Any) -> Any:
            taken = self.taken.get(leaf_path(path))
            if taken is None:
                return leaf
            arrays = [found[source] for source in taken.sources]
            if taken.make is None:
                return arrays[0]
            return jax.jit(taken.make, out_shardings=leaf.sharding)(leaf, *arrays)

        return jax.tree.map_with_path(begin, fresh)

    def lines(self) -> list[str]:
        """What is taken and what is not, a line for each kind."""
        read = {source for taken in self.taken.values() for source in taken.sources}
        untaken = [path for path in self.ours if path not in self.taken]
        reshaped = [
            f"{path} ({_sizes(self.theirs[path])} there, {_sizes(self.ours[path])} here)"
            for path in untaken
            if path in self.theirs and not self._same(path)
        ]
        # Such as the statistics of a codebook of another width.
        parts = [path for path in untaken if path in self.theirs and self._same(path)]
        here = _roots([path for path in untaken if path not in self.theirs], self.theirs)
        there = _roots([p for p in self.theirs if p not in self.ours and p not in read], self.ours)
        count = sum(math.prod(self.ours[path].shape) for path in self.taken)
        total = sum(math.prod(leaf.shape) for leaf in self.ours.values())
        lines = [
            f"starts from {self.source.folder}: {len(self.taken)} of {len(self.ours)} arrays,"
            f" {count:,} of {total:,} numbers"
        ]
        kinds = {
            "taken in another form": [taken.note for taken in self.taken.values() if taken.note],
            "fresh here, of another shape": reshaped,
            "fresh here, not there": here,
            "fresh here, as another part of the same codebook is": parts,
            "not taken, as not here": there,
        }
        lines += [f"{kind}: {'; '.join(named)}" for kind, named in kinds.items() if named]
        return lines

    def _same(self, path: str) -> bool:
        return _fits(self.ours[path], self.theirs[path])


def plan_start(source: TrainedStage, variables: Any, rules: Iterable[Rule], name: str) -> Start:
    """What is taken of a stage's weights: arrays of one path and shape, and what rules say.

    Args:
        source: the other stage.
        variables: {"params": ..., **collections} here, or their shapes.
        rules: what is not taken as it is; of two that decide on one array the later one counts.
        name: of the stage that starts, for messages.

    Raises:
        InputError: the source has no checkpoint, or no array of more than one axis fits.
    """
    ours, theirs = leaves_by_path(variables), saved_variables(source)
    decided: dict[str, Taken | None] = {
        path: Taken((path,))
        for path, leaf in ours.items()
        if path in theirs and _fits(leaf, theirs[path])
    }
    for rule in rules:
        decided |= rule(ours, theirs)
    taken = {path: how for path in ours if (how := decided.get(path))}
    # A few biases always fit.
    if all(len(ours[path].shape) < 2 for path in taken):
        first = next(path for path in ours if path not in taken)
        raise InputError(
            f"{name} cannot start from {source.folder}: no matrix there fits this model, such as"
            f" {first}; set config.{name}.model as it was there, or leave config.{name}.init_from"
            " out"
        )
    return Start(source, taken, ours, theirs)


def codebook_rule(ours: Leaves, theirs: Leaves) -> dict[str, Taken | None]:
    """Codes of one size are taken whichever way either codebook is learned, others not at all.

    A moving average begins as if each code were the mean of one vector, as a fresh one does.
    """
    decided: dict[str, Taken | None] = {}
    for path in ours:
        match = re.fullmatch(rf"(?:params|{STATE})/(.*)/(?:codebook|code_sum)", path)
        if not match:
            continue
        codebook = f"params/{match[1]}/codebook"
        state = f"{STATE}/{match[1]}/"
        total, count, started = (state + name for name in ("code_sum", "code_count", "started"))
        of_theirs = next((name for name in (codebook, total) if name in theirs), None)
        if of_theirs is None or not _fits(ours[path], theirs[of_theirs]):
            decided |= {name: None for name in ours if name == path or name.startswith(state)}
        elif path == codebook and of_theirs == total:
            note = f"{codebook} is the codes of {state}*"
            decided[path] = Taken((total, count), lambda _, s, n: s / n[:, None], note)
        elif path == total and of_theirs == codebook:
            note = f"{state}* begins with the codes of {codebook}"
            decided[total] = Taken((codebook,), lambda _, codes: codes, note)
            decided |= {name: Taken((), jnp.ones_like) for name in (count, started)}
    return decided


def condition_rule(ours: Condition, theirs: Condition) -> Rule:
    """The rule by which the rows of a condition's embedding are taken: by what they mean."""
    common = ids_in_common(theirs, ours)
    here, there = np.array([*common.items()], np.int32).T

    def rule(our_leaves: Leaves, their_leaves: Leaves) -> dict[str, Taken | None]:
        decided: dict[str, Taken | None] = {}
        for path, leaf in our_leaves.items():
            # The table of `vqjax.priors.condition.ConditionEmbedding`.
            if not path.endswith("/ids/embedding") or path not in their_leaves:
                continue
            if ours == theirs or leaf.shape[1:] != their_leaves[path].shape[1:]:
                continue
            note = (
                f"{path} has {len(common) - 2} of its {ours.num_ids} rows of the classes of the"
                " same name, and those of the null condition and of padding; the others are fresh"
            )
            decided[path] = Taken((path,), lambda new, old: new.at[here].set(old[there]), note)
        return decided

    return rule


def position_rule(ours: Leaves, theirs: Leaves) -> dict[str, Taken | None]:
    """Learned positions of a grid of another size are stretched to the one here."""
    decided: dict[str, Taken | None] = {}
    for path, leaf in ours.items():
        # The tables of `vqjax.nn.positions`.
        if not re.fullmatch(r"params/(?:.*/)?\w*position/(?:row|column|cell)", path):
            continue
        there = theirs.get(path)
        if there is None or there.shape == leaf.shape or there.shape[-1] != leaf.shape[-1]:
            continue
        cells = ("x".join(map(str, table.shape[:-1])) for table in (there, leaf))
        note = f"{path} is stretched from {' to '.join(cells)} cells"
        decided[path] = Taken((path,), lambda new, old: stretched(old, *new.shape[:-1]), note)
    return decided


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path ("params/decoder/conv/kernel")."""
    return {leaf_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _fits(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _sizes(leaf: Any) -> str:
    return "x".join(map(str, leaf.shape)) or "a number"


def _roots(paths: Iterable[str], others: Iterable[str]) -> list[str]:
    """What paths have that others do not, by its root: not every array of a network."""
    known = {"/".join(p.split("/")[:n]) for p in others for n in range(p.count("/") + 1)}
    roots: dict[str, int] = {}
    for path in paths:
        parts = path.split("/")
        heads = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        root = next((head for head in heads if head not in known), path)
        roots[root] = roots.get(root, 0) + 1
    return [f"{root} ({n} arrays)" if n > 1 else root for root, n in roots.items()]
