"""The block-by-block sampler, called with numpy, and a model that watches what it does."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
from tiny_prior import CODES, NULL

from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.samplers import multigrained
from vqjax.tokens import Tokens

BATCH = 3


def known_tokens(known, known_mask, grid):
    """The codes that a mask shows, as tokens."""
    cells = np.broadcast_to(np.arange(known.shape[1], dtype=np.int32), known.shape)
    positions = np.where(known_mask, cells, known.shape[1])
    return Tokens(jnp.asarray(known), jnp.asarray(positions), grid)


def sample(prior, variables, known, known_mask, spec, seed=0, condition=None):
    """`multigrained.sample` with numpy in and out: the code map."""
    condition = jnp.zeros((len(known), 0), jnp.int32) if condition is None else condition
    given = known_tokens(known, known_mask, spec.grid)
    key = jax.random.key(seed)
    return np.asarray(
        multigrained.sample(prior, variables, key, condition, given, spec.settings, spec.grid).codes
    )


def blocks_of(spec):
    """(top, left) of the blocks in raster order."""
    (h, w), size = spec.grid, spec.block_size
    return [(top, left) for top in range(0, h, size) for left in range(0, w, size)]


def cells_of(spec, block, margin=0):
    """Of each cell of a block with `margin` around it, the flat index in the grid; None outside."""
    (h, w), size = spec.grid, spec.block_size
    top, left = blocks_of(spec)[block]
    return [
        row * w + column if 0 <= row < h and 0 <= column < w else None
        for row in range(top - margin, top + size + margin)
        for column in range(left - margin, left + size + margin)
    ]


def own_of(spec, block):
    return [cell for cell in cells_of(spec, block) if cell is not None]


def random_known(spec, seed=0, batch=BATCH):
    """Codes, and cells given: some blocks whole, some in part, the last image fully."""
    rng = np.random.default_rng(seed)
    n = spec.grid[0] * spec.grid[1]
    known = rng.integers(0, CODES, (batch, n)).astype(np.int32)
    mask = rng.uniform(size=(batch, n)) < 0.3
    for block in range(len(blocks_of(spec))):
        inside = [cell for cell in cells_of(spec, block) if cell is not None]
        mask[rng.integers(batch), inside] = True
    mask[-1] = True
    # A block that is given in all images.
    mask[:, [cell for cell in cells_of(spec, 1) if cell is not None]] = True
    return known, mask


def nothing_known(spec, batch=BATCH):
    n = spec.grid[0] * spec.grid[1]
    return np.zeros((batch, n), np.int32), np.zeros((batch, n), bool)


class Watched:
    """A prior whose global tokens are the codes themselves, and which records every call."""

    block_size, halo, mask_id = 3, 1, CODES

    def __init__(self, logits_of):
        """`logits_of(window_codes, query, condition)` are its logits."""
        self.logits_of = logits_of
        self.calls = []
        self.conditions = []

    def apply(self, variables, *inputs, method=None):
        if method == "block_tokens":
            return inputs[0].astype(jnp.float32)
        window, query, block_tokens, condition, _ = inputs
        jax.debug.callback(self._note, window, query, block_tokens, condition, ordered=True)
        return self.logits_of(window, query, condition)

    @property
    def __class__(self):
        # The types of the sampler are checked.
        return MultiGrainedPrior

    def null_condition(self, condition):
        return jnp.full_like(condition, NULL)

    def _note(self, *call):
        *call, condition = (np.asarray(x) for x in call)
        self.calls.append(call)
        self.conditions.append(condition)

    def sample(self, known, known_mask, spec, **options):
        """The codes, and the calls (window, query, block tokens) in their order."""
        self.calls.clear()
        self.conditions.clear()
        # Another prior, so another program.
        watched = copy.copy(self)
        watched.block_size, watched.halo, watched.mask_id = spec.block_size, spec.halo, spec.mask_id
        unchanged = (self.block_size, self.halo, self.mask_id) == (
            watched.block_size,
            watched.halo,
            watched.mask_id,
        )
        prior = self if unchanged else watched
        codes = sample(prior, {}, known, known_mask, spec, **options)
        jax.effects_barrier()
        return codes, list(self.calls)


def noise_logits(window, query, condition):
    """Logits of nine cells that vary with what is seen."""
    seed = jnp.sum(window, axis=-1, keepdims=True)[..., None] + query[:, None, None]
    cell, code = jnp.arange(9)[:, None], jnp.arange(CODES)
    return 3 * jnp.sin(1.0 + seed + 2.3 * cell * code + 0.7 * code)
