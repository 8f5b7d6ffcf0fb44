"""Sampling block by block: schedule, order, what each step sees, may change and costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_prior import CODES, GRID, make, schedule, spec_of
from tiny_sampler import (
    BATCH,
    Watched,
    blocks_of,
    cells_of,
    noise_logits,
    nothing_known,
    random_known,
    sample,
    sample_tokens,
    tokens_of,
    window_cells_of,
)

from vqjax.priors.block_layout import block_layout
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.samplers import multigrained
from vqjax.samplers.multigrained import MultiGrainedSampling
from vqjax.tokens import Tokens


@pytest.fixture(scope="module")
def watched():
    return Watched(noise_logits)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_every_step_fixes_exactly_the_scheduled_number_in_raster_order(watched, steps):
    spec = spec_of(steps=steps)
    known, mask = random_known(spec)
    codes, calls = watched.sample(known, mask, spec)
    assert (codes[mask] == known[mask]).all()
    assert ((codes >= 0) & (codes < CODES)).all()

    observed = [(int(query[0]), (window[:, :9], tokens)) for window, query, tokens in calls]
    expected = []
    for block in range(len(blocks_of(spec))):
        own = cells_of(spec, block)
        inside = [slot for slot, cell in enumerate(own) if cell is not None]
        unknown = (~mask[:, [own[slot] for slot in inside]]).sum(1)
        counts = np.array([schedule(n, steps) for n in unknown])
        assert (counts[:, -1] == 0).all()
        # As many calls as the image with most to do needs: none where all is known.
        expected += [(block, inside, counts[:, step]) for step in range((counts.max(0) > 0).sum())]
    assert [block for block, _ in observed] == [block for block, _, _ in expected]
    assert 1 not in [block for block, _ in observed]
    for (_, (window, _)), (_, inside, count) in zip(observed, expected, strict=True):
        np.testing.assert_array_equal((window[:, inside] == CODES).sum(1), count)


def test_a_step_sees_what_is_known_in_its_window_and_complete_blocks_in_the_map(watched):
    spec = spec_of(steps=5)
    known, mask = random_known(spec, seed=1)
    codes, calls = watched.sample(known, mask, spec)
    for window, query, tokens in calls:
        block = int(query[0])
        assert (query == block).all()
        for slot, cell in enumerate(window_cells_of(spec, block)):
            if slot < 9:
                continue
            cell_block = next(b for b in range(6) if cell in cells_of(spec, b))
            seen = codes[:, cell] if cell_block < block else np.where(mask, known, CODES)[:, cell]
            np.testing.assert_array_equal(window[:, slot], seen)
        for other in set(range(6)) - {block}:
            own = cells_of(spec, other)
            inside = [slot for slot, cell in enumerate(own) if cell is not None]
            cells = [own[slot] for slot in inside]
            complete = np.full(BATCH, True) if other < block else mask[:, cells].all(1)
            expected = np.full((BATCH, 9), CODES)
            expected[:, inside] = np.where(complete[:, None], codes[:, cells], CODES)
            np.testing.assert_array_equal(tokens[:, other], expected)


def test_a_token_once_fixed_stays(watched):
    spec = spec_of(steps=5)
    codes, calls = watched.sample(*nothing_known(spec), spec)
    assert len(calls) > 6
    for window, query, _ in calls:
        for slot, cell in enumerate(window_cells_of(spec, int(query[0]))):
            if cell is not None:
                fixed = window[:, slot] != CODES
                np.testing.assert_array_equal(window[fixed, slot], codes[fixed, cell])


def test_with_everything_known_the_model_is_not_run(watched):
    spec = spec_of(steps=5)
    known, mask = random_known(spec)
    codes, calls = watched.sample(known, np.ones_like(mask), spec)
    assert not calls
    np.testing.assert_array_equal(codes, known)


def test_codes_under_an_open_mask_are_not_seen(watched):
    spec = spec_of(steps=5)
    known, mask = random_known(spec)
    other = np.where(mask, known, (known + 5) % CODES)
    np.testing.assert_array_equal(
        watched.sample(known, mask, spec)[0], watched.sample(other, mask, spec)[0]
    )


def test_one_cell_blocks_are_an_autoregressive_sampler():
    grid, weights = (4, 5), np.array([3, 1, 4, 2, 0, 6, 5, 2, 7])

    def rule(window):
        """Of the codes of a 3x3 window, the middle one first; unknown and outside ones as CODES."""
        return (window @ weights + 1) % CODES

    layout = block_layout(grid, 1, 1)
    places = [4, 0, 1, 2, 3, 5, 6, 7, 8]

    def logits_of(window, query, condition):
        # From the window as it is packed to the square.
        offset = jnp.asarray(layout.window_cells)[query] - query[:, None]
        place = 4 + 3 * jnp.round(offset / grid[1]).astype(int) + (offset + 1) % grid[1] - 1
        place = jnp.where(jnp.asarray(layout.window_inside)[query], place, 9)
        square = jnp.full((len(window), 9), CODES)
        square = square.at[jnp.arange(len(window))[:, None], place].set(window, mode="drop")
        code = rule(square[:, jnp.array(places)])
        return jnp.where(jnp.arange(CODES) == code[:, None], 0.0, -jnp.inf)[:, None]

    spec = spec_of(grid=grid, block_size=1)
    known, mask = nothing_known(spec, batch=4)
    rng = np.random.default_rng(0)
    known = rng.integers(0, CODES, known.shape).astype(np.int32)
    mask = rng.uniform(size=mask.shape) < 0.3
    codes, calls = Watched(logits_of).sample(known, mask, spec)
    for image in range(4):
        padded = np.full((6, 7), CODES)
        padded[1:-1, 1:-1] = np.where(mask, known, CODES)[image].reshape(grid)
        for i, j in np.ndindex(grid):
            if not mask[image, i * grid[1] + j]:
                padded[i + 1, j + 1] = rule(padded[i : i + 3, j : j + 3].reshape(9)[places])
        np.testing.assert_array_equal(codes[image].reshape(grid), padded[1:-1, 1:-1])
    assert len(calls) == (~mask.all(0)).sum()


def constant(logits):
    """A model that gives every cell the same logits, or those of (cells, codes)."""

    def logits_of(window, query, condition):
        return jnp.broadcast_to(logits, (*window.shape, logits.shape[-1]))

    return Watched(logits_of)


def test_samples_follow_the_filtered_softmax():
    logits = np.array([1.0, 0.2, -0.5, 0.6, -2.0, 0.9], np.float32)
    spec = spec_of(
        grid=(2, 6), block_size=2, halo=0, mask_id=6, steps=1, temperature=0.8, top_k=5, top_p=0.9
    )
    codes, calls = constant(logits).sample(*nothing_known(spec, batch=800), spec)
    assert len(calls) == 3
    p = scipy.special.softmax(logits.astype(np.float64) / 0.8)
    p[4] = 0  # the sixth of six: top-k
    p[2] = 0  # the four likeliest have 0.93 of the remaining five: top-p
    p /= p.sum()
    counts = np.bincount(codes.reshape(-1), minlength=6)
    assert (counts[p == 0] == 0).all()
    assert scipy.stats.chisquare(counts[p > 0], p[p > 0] * codes.size).pvalue > 0.01
    # Cells of one block, of two blocks, and of two images are drawn apart.
    for a, b in ((codes[:, 0], codes[:, 1]), (codes[:, 0], codes[:, 2]), (codes[:-1], codes[1:])):
        pairs = np.bincount((a * 6 + b).reshape(-1), minlength=36).reshape(6, 6)
        assert scipy.stats.chi2_contingency(pairs[p > 0][:, p > 0]).pvalue > 0.01


def test_tokens_that_were_not_fixed_are_drawn_anew():
    logits = np.log(np.array([0.9, 0.1], np.float32))
    spec = spec_of(grid=(2, 2), block_size=2, halo=0, mask_id=2, steps=2, choice_temperature=0.0)
    codes, _ = constant(logits).sample(*nothing_known(spec, batch=2000), spec)
    # Step one keeps the two most confident of four draws, step two draws the other two.
    rare = scipy.stats.binom.pmf(np.arange(5), 4, 0.1)
    expected = rare[3] + 2 * rare[4] + 2 * 0.1
    np.testing.assert_allclose(codes.sum(1).mean(), expected, atol=0.04)


def test_the_noise_of_the_choice_falls_with_the_steps():
    # Cell 0 is certain, cell 1 has two equal codes; the two others lie outside the grid.
    logits = np.array([[0.0, -60.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    spec = spec_of(grid=(1, 2), block_size=2, halo=0, mask_id=2, steps=4, choice_temperature=2.0)
    images = 4000
    _, calls = constant(logits).sample(*nothing_known(spec, batch=images), spec)
    assert len(calls) == 2
    second_window = calls[1][0]
    np.testing.assert_array_equal((second_window[:, :2] == 2).sum(1), 1)
    odds = 2 ** (1 / (2.0 * (1 - 1 / 4)))
    first = int((second_window[:, 0] != 2).sum())
    assert scipy.stats.binomtest(first, images, odds / (1 + odds)).pvalue > 0.01


# With a real prior


REAL = {"steps": 3, "top_p": 0.95}


def test_known_tokens_never_change_and_codes_are_codes():
    """In float32 the oracle's tests see to it."""
    prior, variables = make(dtype="bfloat16")
    spec = spec_of(**REAL)
    for seed in range(4):
        known, mask = random_known(spec, seed)
        codes = sample(prior, variables, known, mask, spec, seed)
        np.testing.assert_array_equal(codes[mask], known[mask])
        assert ((codes >= 0) & (codes < CODES)).all()


def test_the_key_decides():
    prior, variables = make(dtype="bfloat16")
    spec = spec_of(**REAL)
    known, mask = nothing_known(spec)
    first, again, other = (sample(prior, variables, known, mask, spec, s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()  # images of a batch are drawn apart


# What is known


def test_whatever_is_known_takes_one_program(watched):
    spec = spec_of(steps=5)
    prior = watched.prior(spec)
    nothing = sample(prior, {}, *nothing_known(spec), spec)
    before = multigrained._sample._cache_size()
    for seed in range(3):
        sample(prior, {}, *random_known(spec, seed), spec, seed)
    for known in (None, Tokens.none(BATCH, GRID)):
        tokens = sample_tokens(prior, {}, known, spec)
        assert tokens.grid == GRID
        np.testing.assert_array_equal(tokens.codes, nothing)
        np.testing.assert_array_equal(tokens.positions[0], np.arange(nothing.shape[1]))
    # Codes of no cell are not seen.
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (BATCH, 35)).astype(np.int32)
    hidden = tokens_of(codes, Tokens.none(BATCH, GRID).positions, GRID)
    np.testing.assert_array_equal(sample_tokens(prior, {}, hidden, spec).codes, nothing)
    assert multigrained._sample._cache_size() == before


def test_sparse_tokens_come_back_unchanged_and_weigh_as_in_the_shape_of_dense_ones(watched):
    """A few tokens of each image in any order, padded with tokens of no cell."""
    spec, cells, rng = spec_of(steps=5), 35, np.random.default_rng(0)
    codes = rng.integers(0, CODES, (BATCH, 12)).astype(np.int32)
    positions = np.stack([rng.permutation(cells)[:12] for _ in range(BATCH)]).astype(np.int32)
    for image, count in enumerate((12, 5, 0)):
        padded = rng.permutation(12)[: 12 - count]
        positions[image, padded] = cells
    mask, known = np.zeros((BATCH, cells), bool), np.zeros((BATCH, cells), np.int32)
    for image, n in np.argwhere(positions < cells):
        mask[image, positions[image, n]] = True
        known[image, positions[image, n]] = codes[image, n]
    np.testing.assert_array_equal(mask.sum(1), [12, 5, 0])

    given = tokens_of(codes, positions, GRID)
    sampled = sample_tokens(watched.prior(spec), {}, given, spec)
    np.testing.assert_array_equal(np.asarray(sampled.codes)[mask], known[mask])
    np.testing.assert_array_equal(sampled.codes, watched.sample(known, mask, spec)[0])


# What it costs


def all_shapes(jaxpr):
    """(shape, is floating) of every value in a program, inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape, jnp.issubdtype(variable.aval.dtype, jnp.floating)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from all_shapes(getattr(inner, "jaxpr", inner))


def test_a_step_costs_one_query_blocks_sequence():
    grid, size, halo, batch = (32, 32), 8, 1, 3
    prior = MultiGrainedPrior(
        num_codes=CODES, grid=grid, dim=16, num_layers=1, num_heads=2, block_size=size, halo=halo
    )
    _, variables = make(grid=grid, block_size=size, halo=halo, num_layers=1, embed_dim=256)

    def draw(variables, key, condition):
        settings = MultiGrainedSampling()
        return multigrained.sample(prior, variables, key, condition, None, settings, grid)

    condition = np.zeros((batch, 0), np.int32)
    program = jax.make_jaxpr(draw)(variables, jax.random.key(0), condition)
    shapes = {shape for shape, floating in all_shapes(program.jaxpr) if floating}
    sequence = 16 + (size + 2 * halo) ** 2
    attention = {s for s in shapes if len(s) == 4 and s[:2] == (batch, 2) and s[2] == s[3]}
    assert attention == {(batch, 2, sequence, sequence)}
    assert {s for s in shapes if s[-1:] == (4 * 16,)} >= {(batch, sequence, 64)}
    assert {s[1] for s in shapes if len(s) == 3 and s[::2] == (batch, CODES)} == {size**2}
    # The whole latent appears only where its blocks are embedded once, before the loop.
    assert not [s for s in shapes if s[:1] == (batch,) and 32 * 32 in s]
