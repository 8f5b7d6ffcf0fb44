"""Tiny priors of whole code maps, with variables large enough for every dependence to show."""

import functools
import math

import jax
import numpy as np

from vqjax.priors.autoregressive import AutoregressivePrior
from vqjax.priors.base import init_prior
from vqjax.priors.masked import MaskedPrior
from vqjax.tokens import Tokens

GRID, CODES, CLASSES, IMAGES = (2, 3), 7, 4, 5
CELLS = GRID[0] * GRID[1]
NULL, PADDING = CLASSES, CLASSES + 1
LAYERS, HEADS, DIM = 2, 2, 8
PRIORS = {"autoregressive": AutoregressivePrior, "masked": MaskedPrior}


@functools.cache
def make(name, **fields):
    """A tiny prior, and its variables."""
    fields = {
        "num_codes": CODES,
        "grid": GRID,
        "dim": DIM,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "dropout": 0.0,
        **fields,
    }
    prior = PRIORS[name](**fields)
    rng = np.random.default_rng(0)

    def fill(path, p):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jax.device_put(rng.normal(mean, 0.5, p.shape).astype(np.float32))

    return prior, jax.tree_util.tree_map_with_path(fill, shapes_of(prior))


def shapes_of(prior, length=1):
    cells, length = math.prod(prior.grid), length if prior.num_ids else 0
    return jax.eval_shape(lambda: init_prior(prior, cells, length, jax.random.key(0)))


def random_codes(seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (IMAGES, CELLS)).astype(np.int32)


def condition_of(prior):
    """Of each image another class, or none."""
    classes = np.arange(IMAGES, dtype=np.int32)[:, None] % CLASSES
    return jax.device_put(classes if prior.num_ids else classes[:, :0])


def tokens_of(codes):
    return Tokens.dense(jax.device_put(codes.reshape(-1, *GRID)))


def random_known(seed=0):
    """Codes, which are given, and their positions: of the last image all, of the first none."""
    rng = np.random.default_rng(seed)
    given = rng.random((IMAGES, CELLS)) < 0.4
    given[-1] = True
    given[0] = False
    positions = np.where(given, np.arange(CELLS), CELLS).astype(np.int32)
    return random_codes(seed), given, positions


@functools.partial(jax.jit, static_argnames=("prior", "train"))
def _forward(prior, variables, codes, condition, seed, train):
    rngs = {"dropout": jax.random.key(seed)}
    return prior.apply(variables, codes, condition, train, rngs=rngs)


def forward(prior, variables, codes, condition=None, train=False, seed=0):
    """Logits of the codes of all cells."""
    condition = condition_of(prior) if condition is None else condition
    return np.asarray(_forward(prior, variables, codes, condition, seed, train))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nats_of(logits, codes, label_smoothing=0.0):
    """The cross-entropy of each code, in float64."""
    log_p = log_softmax(logits)
    own = np.take_along_axis(log_p, codes[..., None], -1)[..., 0]
    return -(1 - label_smoothing) * own - label_smoothing * log_p.mean(-1)
