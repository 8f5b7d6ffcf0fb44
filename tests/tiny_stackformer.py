"""A tiny Stackformer of sparse tokens, with variables large enough for every dependence to show."""

import functools

import jax
import numpy as np

from vqjax.priors.base import init_prior
from vqjax.priors.stackformer import StackformerPrior
from vqjax.tokens import Tokens

GRID, CODES, CLASSES, IMAGES, TOKENS = (2, 3), 7, 4, 5, 4
CELLS = GRID[0] * GRID[1]
NULL, PADDING = CLASSES, CLASSES + 1
DIM = 8


@functools.cache
def make(length=0, **fields):
    """A prior, of conditions of that length where it has one, and its variables."""
    fields = {
        "num_codes": CODES,
        "grid": GRID,
        "num_ids": CLASSES if length else 0,
        "dim": DIM,
        "num_layers": 2,
        "num_position_layers": 1,
        "num_heads": 2,
        "dropout": 0.0,
        **fields,
    }
    prior = StackformerPrior(**fields)
    rng = np.random.default_rng(0)

    def fill(path, p):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jax.device_put(rng.normal(mean, 0.5, p.shape).astype(np.float32))

    return prior, jax.tree_util.tree_map_with_path(fill, shapes_of(prior, TOKENS, length))


def shapes_of(prior, tokens, length):
    return jax.eval_shape(lambda: init_prior(prior, tokens, length, jax.random.key(0)))


def condition_of(length):
    """Of each image other classes; the second image has padding but for the first of them."""
    ids = np.arange(IMAGES * length).reshape(IMAGES, length) // 2 % CLASSES
    ids[1:2, 1:] = PADDING
    return jax.device_put(ids.astype(np.int32))


def random_tokens(seed=0):
    """Codes and positions in raster order, those of each image other ones."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (IMAGES, TOKENS)).astype(np.int32)
    positions = [np.sort(rng.permutation(CELLS)[:TOKENS]) for _ in range(IMAGES)]
    return codes, np.array(positions, np.int32)


def tokens_of(codes, positions):
    return Tokens(*jax.device_put((codes, positions)), GRID)


@functools.partial(jax.jit, static_argnames=("prior", "train"))
def _forward(prior, variables, codes, positions, condition, seed, train):
    rngs = {"dropout": jax.random.key(seed)}
    return prior.apply(variables, codes, positions, condition, train, rngs=rngs)


def forward(prior, variables, codes, positions, condition, train=False, seed=0):
    """Logits of all codes and of all positions."""
    logits = _forward(prior, variables, codes, positions, condition, seed, train)
    return [np.asarray(x) for x in logits]
