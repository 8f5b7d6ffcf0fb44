"""A tiny multi-grained prior with partial blocks, its loss watched, and its sampling schedule."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np

from vqjax.priors.base import init_prior
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.samplers.multigrained import MultiGrainedSampling
from vqjax.tokens import Tokens

# 2 x 3 blocks, those at the lower and right border partial.
GRID, BLOCK, HALO, CODES, CLASSES = (5, 7), 3, 1, 11, 5
SIDE = BLOCK + 2 * HALO
# Cells of the longest window: that of the middle block of the upper row.
WINDOW = 4 * 5
BLOCKS = [(top, left) for top in (0, 3) for left in (0, 3, 6)]
MASK, NULL, PADDING = CODES, CLASSES, CLASSES + 1
IMAGES = 16


def window_of(block):
    """(slot in the window, row, column, own cell of the block) of the cells inside the grid."""
    top, left = BLOCKS[block]
    own = [(top + i, left + j) for i in range(BLOCK) for j in range(BLOCK)]
    halo = [
        (row, column)
        for row in range(top - HALO, top + BLOCK + HALO)
        for column in range(left - HALO, left + BLOCK + HALO)
        if (row, column) not in own and in_grid(row, column)
    ]
    cells = enumerate(own + halo)
    return [(i, *cell, cell in own) for i, cell in cells if in_grid(*cell)]


def in_grid(row, column):
    return 0 <= row < GRID[0] and 0 <= column < GRID[1]


def own_cells(block):
    """(slot in the window, flat cell of the grid) of a block's cells, in raster order."""
    return np.array([(i, r * GRID[1] + c) for i, r, c, own in window_of(block) if own]).T


@functools.cache
def make(**fields):
    """A tiny prior, and variables large enough for every dependence to show."""
    fields = {
        "num_codes": CODES,
        "grid": GRID,
        "dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "embed_dim": 4,
        "block_size": BLOCK,
        "halo": HALO,
        "dropout": 0.0,
        **fields,
    }
    of_no_shape = "dropout", "condition_dropout", "query_blocks_per_image", "dtype"
    shaping = {name: value for name, value in fields.items() if name not in of_no_shape}
    return MultiGrainedPrior(**fields), _variables(**shaping)


@functools.cache
def _variables(**fields):
    rng = np.random.default_rng(0)

    def fill(path, p):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        # Not jnp.asarray, which compiles a program for every shape.
        return jax.device_put(rng.normal(mean, 0.4, p.shape).astype(np.float32))

    return jax.tree_util.tree_map_with_path(fill, shapes_of(MultiGrainedPrior(**fields)))


def shapes_of(prior):
    length = 1 if prior.num_ids else 0
    return jax.eval_shape(
        lambda: init_prior(prior, math.prod(prior.grid), length, jax.random.key(0))
    )


def random_codes(seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (IMAGES, *GRID)).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("prior", "train", "context", "run"))
def _spied_loss(
    prior, variables, codes, condition, valid, seed, mask_ratio, train, context, run=True
):
    calls = []

    def record(call, args, kwargs, where):
        out = call(*args, **kwargs)
        if isinstance(where.module, MultiGrainedPrior) and where.method_name == "__call__":
            calls.append((*args[:4], out))
        return out

    key_mask, key_dropout = jax.random.split(jax.random.key(seed))
    with nn.intercept_methods(record):
        loss, number, metrics = prior.apply(
            variables,
            Tokens.dense(codes),
            condition,
            train,
            mask_ratio=mask_ratio,
            context=context,
            valid=valid,
            method="loss",
            rngs={"mask": key_mask, "dropout": key_dropout},
        )
    (call,) = calls
    *inputs, logits = (x.reshape(len(codes), len(x) // len(codes), *x.shape[1:]) for x in call)
    return (inputs, (loss, number, metrics, logits)) if run else (inputs, [None] * 4)


def spied_loss(
    prior,
    variables,
    codes,
    *,
    condition=None,
    seed=0,
    train=True,
    mask_ratio=None,
    context="mixed",
    valid=None,
    run=True,
):
    """`loss`, and what its forward pass was given and gave, with axes (image, query block).

    The model itself is left out of the program where `run` is false.
    """
    none = np.zeros((len(codes), 0), np.int32)
    inputs, outputs = _spied_loss(
        prior,
        variables,
        codes,
        none if condition is None else condition,
        np.ones(len(codes), bool) if valid is None else valid,
        seed,
        mask_ratio if mask_ratio is None else np.float32(mask_ratio),
        train=train,
        context=context,
        run=run,
    )
    window, query, block_tokens, seen = (np.asarray(x) for x in inputs)
    loss, number, metrics, logits = jax.tree.map(np.asarray, outputs)
    return SimpleNamespace(
        loss=loss,
        number=number,
        metrics=metrics,
        window=window,
        query=query,
        block_tokens=block_tokens,
        condition=seen,
        logits=logits,
    )


@functools.partial(jax.jit, static_argnames=("prior", "grid", "train", "corner"))
def _forward(prior, variables, inputs, grid, train, seed, corner):
    rngs = {"dropout": jax.random.key(seed)}
    return prior.apply(variables, *inputs, grid, train, corner, rngs=rngs)


def forward(prior, variables, *inputs, grid=GRID, train=False, seed=0, corner=(0, 0)):
    return np.asarray(_forward(prior, variables, inputs, grid, train, seed, corner))


def forward_inputs(prior, seed=0):
    """A row for every query block: random windows with masked cells, random global tokens."""
    rng = np.random.default_rng(seed)
    window = rng.integers(0, CODES + 1, (len(BLOCKS), WINDOW)).astype(np.int32)
    block_tokens = rng.normal(size=(len(BLOCKS), len(BLOCKS), prior.dim)).astype(np.float32)
    condition = np.zeros((len(BLOCKS), 0), np.int32)
    return [window, np.arange(len(BLOCKS), dtype=np.int32), block_tokens, condition]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A sampling: the prior's geometry, and the settings."""

    settings: MultiGrainedSampling
    grid: tuple = GRID
    block_size: int = 3
    halo: int = 1
    mask_id: int = CODES

    def __getattr__(self, name):
        return getattr(self.settings, name)


def spec_of(**fields):
    geometry = {name: fields.pop(name) for name in [*fields] if name in Spec.__annotations__}
    return Spec(MultiGrainedSampling(**fields), **geometry)


def schedule(unknown, steps):
    """How many of a block are unknown before each step and after the last, in float64."""
    counts = [unknown]
    for step in range(1, steps + 1):
        planned = 0 if step == steps else math.floor(unknown * math.cos(math.pi / 2 * step / steps))
        counts.append(max(min(planned, counts[-1] - 1), 0))
    return counts
