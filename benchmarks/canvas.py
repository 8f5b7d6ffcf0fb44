"""What a trained multi-grained prior pays for a block on a larger canvas than it was trained on.

    python benchmarks/canvas.py --workdir=runs/openmoji

The held-out images of a run are laid on canvases, and every block of them is predicted from the
same known tokens as at home: those of the blocks before it ("prefix", as in sampling) or of all
others ("around", as in inpainting); the rest of the canvas is unknown. A block should cost what it
costs at home. In nats a token; the block is wholly masked. Of blocks beyond the image nothing is
known that they could be compared with.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Float, Int

import vqjax
from vqjax.data import build_source, evaluation_batches
from vqjax.errors import InputError
from vqjax.losses.cross_entropy import cross_entropy
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.programs import command_line
from vqjax.runs.build import data_settings

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run with a multi-grained prior")
NUM = flags.DEFINE_integer("num", 256, "Held-out images")
flags.mark_flag_as_required("workdir")

Grid = tuple[int, int]

# By name: whether all blocks but the query block are known, or those before it alone.
CONTEXTS = {"prefix": False, "around": True}


@functools.partial(jax.jit, static_argnames=("prior", "grid", "corner"))
def nats_of_blocks(
    prior: MultiGrainedPrior,
    variables: Any,
    shown: Int[Array, "n b cells"],
    condition: Int[Array, "b c"],
    queries: Int[Array, "n"],
    targets: Int[Array, "n b q"],
    grid: Grid,
    corner: Grid,
) -> Float[Array, "n"]:
    """Mean nats of the tokens of each query block, given what is shown of a canvas for it."""
    layout = prior.layout(grid, corner)

    def nats(block: tuple[Array, Array, Array]) -> Float[Array, ""]:
        codes, query, target = block
        blocks = codes[:, layout.block_cells], jnp.asarray(layout.block_inside)
        tokens = prior.apply(variables, *blocks, method="known_block_tokens")
        window = codes[:, jnp.asarray(layout.window_cells)[query]]
        rows = jnp.full(len(codes), query)
        logits = prior.apply(variables, window, rows, tokens, condition, grid, corner=corner)
        return jnp.mean(cross_entropy(logits, target))

    return jax.lax.map(nats, (shown, queries, targets))


def on_canvas(
    code_map: Int[np.ndarray, "b h w"],
    known: Bool[np.ndarray, "h w"],
    grid: Grid,
    corner: Grid,
    unknown: int,
) -> Int[np.ndarray, "b cells"]:
    """The known codes of images on a canvas with `corner` as their upper left cell."""
    batch, h, w = code_map.shape
    canvas = np.full((batch, *grid), unknown, np.int32)
    rows, columns = slice(corner[0], corner[0] + h), slice(corner[1], corner[1] + w)
    canvas[:, rows, columns] = np.where(known, code_map, unknown)
    return canvas.reshape(batch, -1)


def cost(
    prior: MultiGrainedPrior,
    variables: Any,
    code_map: Int[np.ndarray, "b h w"],
    condition: Int[np.ndarray, "b c"],
    grid: Grid,
    corner: Grid,
    around: bool,
) -> float:
    """Mean nats of the tokens of all blocks of images that lie on a canvas.

    Args:
        prior: the model.
        variables: its variables.
        code_map: of the images, at home.
        condition: of the images.
        grid: of the canvas.
        corner: cell of the canvas at which the images begin.
        around: all blocks but the query block are known; else those before it.
    """
    home, there = prior.layout(prior.grid), prior.layout(grid, corner)
    block_of_cell = np.empty(prior.grid[0] * prior.grid[1], int)
    for block in range(home.num_blocks):
        block_of_cell[home.block_cells[block][home.block_inside[block]]] = block
    block_map = block_of_cell.reshape(prior.grid)
    flat = code_map.reshape(len(code_map), -1)
    shown, queries, targets = [], [], []
    for block in range(home.num_blocks):
        known = block_map != block if around else block_map < block
        shown.append(on_canvas(code_map, known, grid, corner, prior.mask_id))
        row, column = divmod(int(home.block_cells[block, 0]), prior.grid[1])
        first = (corner[0] + row) * grid[1] + corner[1] + column
        queries.append(np.flatnonzero(there.block_cells[:, 0] == first)[0])
        targets.append(flat[:, home.block_cells[block]])
    nats = nats_of_blocks(
        prior,
        variables,
        np.stack(shown),
        condition,
        np.array(queries, np.int32),
        np.stack(targets).astype(np.int32),
        grid,
        corner,
    )
    return float(np.mean(nats))


def canvases(prior: MultiGrainedPrior) -> list[tuple[Grid, Grid]]:
    """Grids, and where on them the images lie: twice as wide, as high, and both."""
    h, w = prior.grid
    return [
        ((h, 2 * w), (0, 0)),
        ((h, 2 * w), (0, w)),
        ((2 * h, w), (0, 0)),
        ((2 * h, w), (h, 0)),
        ((2 * h, 2 * w), (h // 2, w // 2)),
        # Not on the corner of a block of the canvas.
        ((2 * h, 2 * w), (h // 2 - 1, w // 2 - 1)),
    ]


def main() -> None:
    """Prints the table."""
    run = vqjax.load(WORKDIR.value)
    prior = run.prior
    if not isinstance(prior, MultiGrainedPrior) or any(n % prior.block_size for n in prior.grid):
        raise InputError(
            f"--workdir={WORKDIR.value}: a run is needed whose prior is multi-grained and whose"
            " latent grid its blocks divide"
        )
    settings = data_settings(run.config)
    source = build_source(run.config.data.source, "validation", settings.resolution)
    batch_size = min(NUM.value, 256)
    batches = list(
        evaluation_batches(source, run.condition, settings, batch_size=batch_size, limit=NUM.value)
    )
    code_map = np.concatenate([np.asarray(run.encode(b["image"]).code_map) for b in batches])
    valid = np.concatenate([b["valid"] for b in batches])
    condition = np.concatenate([b["condition"] for b in batches])[valid]
    code_map = code_map[valid]

    print(f"{len(code_map)} held-out images of {WORKDIR.value}, nats a token of a masked block")
    print(f"{'canvas':<12}{'image at':<12}" + "".join(f"{c:>10}{'+':>8}" for c in CONTEXTS))
    at_home: dict[str, float] = {}
    for grid, corner in [(prior.grid, (0, 0)), *canvases(prior)]:
        cells = []
        for name, around in CONTEXTS.items():
            nats = cost(prior, run.prior_variables, code_map, condition, grid, corner, around)
            at_home.setdefault(name, nats)
            cells.append(f"{nats:>10.3f}{nats - at_home[name]:>+8.3f}")
        print(f"{grid[0]}x{grid[1]:<10}{corner!s:<12}" + "".join(cells), flush=True)


if __name__ == "__main__":
    command_line.run(main)
