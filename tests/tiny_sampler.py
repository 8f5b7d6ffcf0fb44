"""The block-by-block sampler, called with numpy, and a model that watches what it does."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tiny_prior import CLASSES, CODES

from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.samplers import multigrained
from vqjax.tokens import Tokens

BATCH = 3


def known_tokens(known, known_mask, grid):
    """The codes that a mask shows, as tokens in the shape of dense ones."""
    cells = np.broadcast_to(np.arange(known.shape[1], dtype=np.int32), known.shape)
    positions = np.where(known_mask, cells, known.shape[1])
    return tokens_of(known, positions, grid)


def tokens_of(codes, positions, grid):
    return Tokens(*jax.device_put((codes, positions)), grid)


def sample_tokens(prior, variables, known, spec, seed=0, condition=None, batch=BATCH):
    """`multigrained.sample` of known tokens, or None."""
    condition = np.zeros((batch, 0), np.int32) if condition is None else condition
    return multigrained.sample(
        prior,
        variables,
        jax.random.key(seed),
        jax.device_put(condition),
        known,
        spec.settings,
        spec.grid,
    )


def sample(prior, variables, known, known_mask, spec, seed=0, condition=None):
    """`multigrained.sample` with numpy in and out: the code map."""
    given = known_tokens(known, known_mask, spec.grid)
    tokens = sample_tokens(prior, variables, given, spec, seed, condition, len(known))
    return np.asarray(tokens.codes)


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


def window_cells_of(spec, block):
    """Of each cell of a window, as the prior lists them, the flat index; None outside."""
    own = cells_of(spec, block)
    around = cells_of(spec, block, spec.halo)
    return own + [cell for cell in around if cell is not None and cell not in own]


def window_length(spec):
    return max(len(window_cells_of(spec, block)) for block in range(len(blocks_of(spec))))


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


class WatchedPrior(MultiGrainedPrior):
    """A prior whose global tokens are the codes themselves.

    Attributes:
        logits_of: its logits, of (window_codes, query, condition).
        note: called with all that the prior is called with.
    """

    logits_of: Callable = None
    note: Callable = None

    def setup(self):
        """No parameters."""

    def block_tokens(self, block_codes):
        return block_codes.astype(jnp.float32)

    def __call__(
        self, window_codes, query, block_tokens, condition, grid, train=False, corner=(0, 0)
    ):
        jax.debug.callback(self.note, window_codes, query, block_tokens, condition, ordered=True)
        return self.logits_of(window_codes, query, condition)


class Watched:
    """A prior of given logits, and the calls that a sampler makes of it."""

    def __init__(self, logits_of):
        """`logits_of(window_codes, query, condition)` are its logits."""
        self.logits_of = logits_of
        self.calls = []
        self.conditions = []

    def prior(self, spec):
        return WatchedPrior(
            num_codes=spec.mask_id,
            grid=spec.grid,
            num_ids=CLASSES,
            block_size=spec.block_size,
            halo=spec.halo,
            scan=False,
            logits_of=self.logits_of,
            note=self._note,
        )

    def _note(self, *call):
        *call, condition = (np.asarray(x) for x in call)
        self.calls.append(call)
        self.conditions.append(condition)

    def sample(self, known, known_mask, spec, **options):
        """The codes, and the calls (window, query, block tokens) in their order."""
        self.calls.clear()
        self.conditions.clear()
        codes = sample(self.prior(spec), {}, known, known_mask, spec, **options)
        jax.effects_barrier()
        return codes, list(self.calls)


def noise_logits(window, query, condition):
    """Logits of nine cells that vary with what is seen."""
    seed = jnp.sum(window, axis=-1, keepdims=True)[..., None] + query[:, None, None]
    cell, code = jnp.arange(9)[:, None], jnp.arange(CODES)
    return 3 * jnp.sin(1.0 + seed + 2.3 * cell * code + 0.7 * code)
