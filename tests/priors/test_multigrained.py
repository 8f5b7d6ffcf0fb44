"""The multi-grained prior: what each logit may depend on and how, its size, how it is built."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from condition_positions import with_positions
from tiny_prior import (
    BLOCK,
    BLOCKS,
    CLASSES,
    CODES,
    GRID,
    HALO,
    IMAGES,
    MASK,
    NULL,
    PADDING,
    WINDOW,
    forward,
    forward_inputs,
    make,
    own_cells,
    random_codes,
    shapes_of,
    spied_loss,
    window_of,
)

from vqjax.conditions import null_id, padding_id
from vqjax.errors import InputError
from vqjax.nn.positions import GridEmbedding
from vqjax.nn.transformer import Transformer
from vqjax.priors import build_prior
from vqjax.priors.multigrained import MultiGrainedPrior

# No leak


@pytest.mark.parametrize(("context", "mask_ratio"), [("random", None), ("prefix", 0.6)])
def test_no_masked_token_reaches_the_logits_of_its_own_block_in_training(context, mask_ratio):
    prior, variables = make()
    codes, options = random_codes(), {"context": context, "mask_ratio": mask_ratio}
    before = spied_loss(prior, variables, codes, **options)
    for block in range(len(BLOCKS)):
        slots, cells = own_cells(block)
        masked = before.window[:, block, slots] == MASK
        assert masked.any(axis=1).all()
        changed = codes.reshape(len(codes), -1).copy()
        changed[:, cells] = np.where(masked, (changed[:, cells] + 4) % CODES, changed[:, cells])
        after = spied_loss(prior, variables, changed.reshape(codes.shape), **options)
        np.testing.assert_array_equal(after.logits[:, block], before.logits[:, block])
        # It is the rule that holds it back: its neighbours see the change where they may.
        if block < len(BLOCKS) - 1:
            assert np.abs(after.logits - before.logits).max() > 1e-3


def test_an_unmasked_token_of_the_query_block_is_seen():
    prior, variables = make()
    codes = random_codes()
    before = spied_loss(prior, variables, codes, mask_ratio=0.5)
    for block in range(len(BLOCKS) - 1):
        slots, cells = own_cells(block)
        seen = before.window[:, block, slots] != MASK
        assert seen.any(axis=1).all()
        changed = codes.reshape(len(codes), -1).copy()
        changed[:, cells] = np.where(seen, (changed[:, cells] + 4) % CODES, changed[:, cells])
        after = spied_loss(prior, variables, changed.reshape(codes.shape), mask_ratio=0.5)
        moved = np.abs(after.logits[:, block] - before.logits[:, block]).max(axis=(1, 2))
        assert moved.min() > 1e-3


def test_in_a_prefix_context_only_earlier_blocks_are_seen():
    prior, variables = make()
    codes, options = random_codes(), {"context": "prefix", "mask_ratio": 0.6}
    before = spied_loss(prior, variables, codes, **options)
    for block in range(len(BLOCKS)):
        _, cells = own_cells(block)
        changed = codes.reshape(len(codes), -1).copy()
        changed[:, cells] = (changed[:, cells] + 4) % CODES
        after = spied_loss(prior, variables, changed.reshape(codes.shape), **options)
        np.testing.assert_array_equal(after.logits[:, :block], before.logits[:, :block])
        moved = np.abs(after.logits - before.logits)[:, block + 1 :].max(axis=(2, 3))
        assert ((moved > 1e-3).mean(axis=0) > 0.5).all()


def test_with_everything_masked_no_code_reaches_any_logit():
    prior, variables = make()
    options = {"mask_ratio": 1.0, "context": "random"}
    before = spied_loss(prior, variables, random_codes(), **options)
    after = spied_loss(prior, variables, random_codes(seed=1), **options)
    np.testing.assert_array_equal(after.logits, before.logits)
    assert after.loss != before.loss


def test_what_a_caller_passes_as_the_query_blocks_own_token_is_ignored():
    prior, variables = make()
    window, query, block_tokens, condition = forward_inputs(prior)
    before = forward(prior, variables, window, query, block_tokens, condition)
    for shift in range(len(BLOCKS)):
        changed = block_tokens.copy()
        changed[np.arange(len(BLOCKS)), (query + shift) % len(BLOCKS)] *= -1
        after = forward(prior, variables, window, query, changed, condition)
        moved = np.abs(after - before).max(axis=(1, 2))
        assert (moved == 0).all() if shift == 0 else (moved > 1e-3).all()


def test_cells_outside_the_map_are_not_seen():
    prior, variables = make()
    window, query, block_tokens, condition = forward_inputs(prior)
    inside = np.zeros(window.shape, bool)
    for block in range(len(BLOCKS)):
        inside[block, [cell[0] for cell in window_of(block)]] = True
    # Every window but the longest.
    assert (~inside).any(axis=1).sum() == len(BLOCKS) - 1
    before = forward(prior, variables, window, query, block_tokens, condition)
    changed = np.where(inside, window, (window + 3) % (CODES + 1))
    assert (changed != window).any()
    after = forward(prior, variables, changed, query, block_tokens, condition)
    np.testing.assert_array_equal(after, before)
    # An inside cell of the halo is.
    changed = np.where(inside, (window + 3) % (CODES + 1), window)
    after = forward(prior, variables, changed, query, block_tokens, condition)
    assert np.abs(after - before).max(axis=(1, 2)).min() > 1e-3


# The sequence


def test_the_sequence_is_condition_global_tokens_local_tokens():
    prior, variables = make(num_ids=CLASSES)
    window, query, block_tokens, _ = forward_inputs(prior)
    condition = np.array([[0], [1], [NULL], [4], [PADDING], [2]], np.int32)
    calls = []

    def record(call, args, kwargs, where):
        out = call(*args, **kwargs)
        if isinstance(where.module, Transformer) and where.method_name == "__call__":
            calls.append((args[0], args[1], out))
        return out

    @jax.jit
    def run(*inputs):
        with nn.intercept_methods(record):
            logits = prior.apply(variables, *inputs, GRID)
        return *calls[0], logits

    x, mask, y, logits = map(np.asarray, run(window, query, block_tokens, condition))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    embedding = p["code_embedding"]["embedding"]
    local, glob = p["local_position"], p["global_position"]

    for block in range(len(BLOCKS)):
        expected = [p["condition_embedding"]["ids"]["embedding"][condition[block, 0]]]
        visible = [condition[block, 0] != PADDING]
        for j in range(len(BLOCKS)):
            token = block_tokens[block, j]
            if j == block:
                token = p["block_convolution"]["bias"].copy()
                inside = [cell[0] for cell in window_of(block)]
                for k in range(BLOCK**2):
                    code = window[block, k] if k in inside else MASK
                    token += embedding[code] @ p["block_convolution"]["kernel"][k]
            expected.append(token + glob["row"][j // 3] + glob["column"][j % 3])
            visible.append(True)
        np.testing.assert_allclose(x[block, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(mask[block, 0, 0, : len(visible)], visible)

        front = len(expected)
        slots = [cell[0] for cell in window_of(block)]
        np.testing.assert_array_equal(mask[block, 0, 0, front:], np.isin(np.arange(WINDOW), slots))
        for slot, row, column, _ in window_of(block):
            token = embedding[window[block, slot]] @ p["local_projection"]["kernel"]
            token += p["local_projection"]["bias"]
            token += local["row"][row + HALO] + local["column"][column + HALO]
            np.testing.assert_allclose(x[block, front + slot], token, rtol=1e-4, atol=1e-5)

        own, _ = own_cells(block)
        expected_logits = y[block, front + own] @ p["head"]["kernel"] + p["head"]["bias"]
        np.testing.assert_allclose(logits[block, own], expected_logits, rtol=1e-4, atol=1e-4)


def test_global_tokens_are_a_convolution_whose_kernel_and_stride_are_the_block():
    prior, variables = make()
    codes = random_codes()
    padded = np.full((IMAGES, 6, 9), MASK)
    padded[:, : GRID[0], : GRID[1]] = codes
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    kernel = p["block_convolution"]["kernel"].reshape(BLOCK, BLOCK, prior.embed_dim, prior.dim)

    def convolve(code_map):
        embedded = p["code_embedding"]["embedding"][code_map]
        tokens = [
            np.einsum("bijc,ijcd->bd", embedded[:, top : top + BLOCK, left : left + BLOCK], kernel)
            for top, left in BLOCKS
        ]
        return np.stack(tokens, axis=1) + p["block_convolution"]["bias"]

    # In a prefix context the blocks before the query block come clean, those after it masked.
    clean, masked = convolve(padded), convolve(np.full_like(padded, MASK))
    given = spied_loss(prior, variables, codes, context="prefix", mask_ratio=0.6).block_tokens
    for i, j in itertools.permutations(range(len(BLOCKS)), 2):
        expected = clean[:, j] if j < i else masked[:, j]
        np.testing.assert_allclose(given[:, i, j], expected, rtol=1e-4, atol=1e-5)


# Other grids than that of the training images


def test_positions_are_a_row_and_a_column_of_learned_tables():
    rng = np.random.default_rng(0)
    rows, columns = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (4, 5))
    found = GridEmbedding((4, 5), 3).apply({"params": {"row": rows, "column": columns}})
    np.testing.assert_allclose(found, rows[:, None] + columns[None], rtol=1e-6)


@pytest.mark.parametrize("corner", [(0, 0), (3, 6), (1, 4)])
def test_a_block_of_the_frame_on_a_larger_canvas_is_the_block_of_a_training_image(corner):
    """Without a halo to the bit of its inputs: nothing beyond the frame is seen."""
    prior, variables = make(grid=(6, 9), halo=0)
    canvas, rng = (9, 15), np.random.default_rng(0)
    codes = rng.integers(0, CODES + 1, (1, *canvas)).astype(np.int32)

    def logits(codes, grid, corner, block):
        layout = prior.layout(grid, corner)
        flat = jnp.asarray(codes).reshape(1, -1)
        tokens = prior.apply(variables, flat[:, layout.block_cells], method="block_tokens")
        window = flat[:, layout.window_cells[block]]
        query, none = np.array([block], np.int32), np.zeros((1, 0), np.int32)
        return forward(prior, variables, window, query, tokens, none, grid=grid, corner=corner)

    rows, columns = slice(corner[0], corner[0] + 6), slice(corner[1], corner[1] + 9)
    elsewhere = (codes + 1) % CODES
    elsewhere[:, rows, columns] = codes[:, rows, columns]
    layout = prior.layout(canvas, corner)
    for home_block in range(6):
        row, column = 3 * (home_block // 3) + corner[0], 3 * (home_block % 3) + corner[1]
        (block,) = np.flatnonzero(layout.block_cells[:, 0] == row * 15 + column)
        here = logits(codes, canvas, corner, block)
        trained = logits(codes[:, rows, columns], (6, 9), (0, 0), home_block)
        np.testing.assert_allclose(here, trained, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(logits(elsewhere, canvas, corner, block), here)


def test_blocks_of_the_frame_that_lie_outside_of_the_canvas_are_not_seen():
    prior, variables = make()
    window, query, block_tokens, condition = forward_inputs(prior)
    # The frame begins with the query block itself.
    frames = prior.layout(GRID).block_place

    def logits(block_tokens, frames):
        inputs = jax.device_put((window, query, block_tokens, condition))
        rest = GRID, False, (0, 0), jnp.asarray(frames)
        return np.asarray(prior.apply(variables, *inputs, *rest))

    before = logits(block_tokens, frames)
    for other in range(len(BLOCKS)):
        changed = block_tokens.copy()
        changed[:, other] *= -1
        moved = np.abs(logits(changed, frames) - before).max(axis=(1, 2)) > 1e-3
        for block in range(len(BLOCKS)):
            below_and_right = (np.subtract(frames[other], frames[block]) >= 0).all()
            assert moved[block] == (below_and_right and other != block)
    # The place in the frame is seen too.
    default = logits(block_tokens, prior.layout(GRID).frame_place)
    assert (np.abs(default - before).max(axis=(1, 2)) > 1e-3)[1:].all()


# The condition


def test_the_condition_is_seen_and_padding_is_not():
    prior, variables = make(num_ids=CLASSES)
    inputs = forward_inputs(prior)[:3]

    def logits(ids, variables=variables):
        if len(ids) > 1:
            variables = with_positions(variables, len(ids))
        condition = np.tile(np.array([ids], np.int32), (len(BLOCKS), 1))
        return forward(prior, variables, *inputs, condition)

    assert np.abs(logits([2]) - logits([3])).max(axis=(1, 2)).min() > 1e-3
    assert np.abs(logits([2]) - logits([null_id(CLASSES)])).max(axis=(1, 2)).min() > 1e-3
    np.testing.assert_allclose(logits([2, padding_id(CLASSES)]), logits([2]), rtol=1e-4, atol=1e-5)

    assert (null_id(CLASSES), padding_id(CLASSES)) == (NULL, PADDING)
    changed = jax.tree.map(np.array, variables)
    table = changed["params"]["condition_embedding"]["ids"]["embedding"]
    assert len(table) == CLASSES + 2
    table[PADDING] *= -3
    np.testing.assert_array_equal(logits([2, PADDING], changed), logits([2, PADDING]))
    table[2] *= -3
    assert np.abs(logits([2, PADDING], changed) - logits([2, PADDING])).max() > 1e-3


def test_dropout_is_on_in_training_only():
    prior, variables = make(dropout=0.5)
    inputs = forward_inputs(prior)
    for train, moves in ((True, True), (False, False)):
        a, b = (forward(prior, variables, *inputs, train=train, seed=seed) for seed in range(2))
        assert (np.abs(a - b).max() > 0) == moves


# Size and building


@pytest.mark.parametrize("num_ids", [0, 1000])
def test_the_full_size_prior_has_about_185_million_parameters(num_ids):
    prior = MultiGrainedPrior(num_codes=1024, grid=(16, 16), num_ids=num_ids)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(prior)))

    d, e, codes, layers = 768, 256, 1024, 24
    layer = 4 * d * d + 4 * d + 2 * 4 * d * d + 5 * d + 2 * 2 * d
    embeddings = (codes + 1) * e + (8 * 8 * e + 1) * d + (e + 1) * d
    positions = 2 * (16 + 2 * 2) * d + 2 * 2 * d
    condition_table = (num_ids + 2) * d if num_ids else 0
    head = 2 * d + (d + 1) * codes
    assert count == layers * layer + embeddings + positions + condition_table + head
    np.testing.assert_allclose(count, 185e6, rtol=0.01)


def test_build_prior_takes_codes_grid_and_ids_from_who_knows_them():
    config = {"name": "multigrained", "dim": 32, "num_heads": 4}
    prior = build_prior("prior.model", config, 32, (8, 8), 7)
    assert (prior.num_codes, prior.grid, prior.num_ids, prior.dim) == (32, (8, 8), 7, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "multigraned"}, "did you mean 'multigrained'"),
        ({"blocksize": 4}, "config.prior.model.blocksize.*did you mean 'block_size'"),
        ({"num_codes": 4}, "config.prior.model.num_codes"),
        ({"halo": -1}, "config.prior.model.halo=-1: 0 or more is needed"),
        ({"query_blocks_per_image": "few"}, "query_blocks_per_image='few': at least 1 or 'auto'"),
    ],
)
def test_build_prior_names_what_it_does_not_know(fields, message):
    with pytest.raises(InputError, match=message):
        build_prior("prior.model", {"name": "multigrained", **fields}, 32, (8, 8), 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"block_size": 0},
        {"halo": -1},
        {"num_heads": 3},
        {"num_heads": 0},
        {"query_blocks_per_image": 0},
        {"condition_dropout": 1.0},
        {"condition_dropout": -0.1},
        {"dropout": 1.0},
        {"label_smoothing": -0.1},
        {"dim": 0},
        {"num_layers": 0},
        {"embed_dim": 0},
    ],
)
def test_fields_out_of_their_range_are_named(fields):
    ((name, value),) = fields.items()
    with pytest.raises(InputError, match=f"^{name}={value!r}: .* is needed"):
        MultiGrainedPrior(**{"num_codes": CODES, "grid": GRID, "dim": 16, **fields})


@pytest.mark.parametrize(
    ("drawn", "fields", "expected"),
    [
        ("auto", {"grid": (16, 16)}, 4),
        ("auto", {"grid": (32, 32)}, 6),
        ("auto", {"grid": (64, 64)}, 4),
        ("auto", {"grid": (16, 16), "block_size": 1}, 3),
        ("auto", {"grid": (16, 16), "block_size": 2}, 10),
        ("auto", {"grid": (128, 128), "block_size": 1}, 1),
        (None, {"grid": (64, 64)}, 64),
        (8, {"grid": (64, 64)}, 8),
        (8, {"grid": (16, 16)}, 4),
    ],
)
def test_query_blocks_of_an_image_are_capped_by_the_work_of_their_sequences(
    drawn, fields, expected
):
    prior = MultiGrainedPrior(num_codes=CODES, query_blocks_per_image=drawn, **fields)
    assert prior.drawn_blocks(prior.grid) == expected


def test_a_held_out_pass_is_capped_whatever_training_draws():
    for drawn in ("auto", None, 8):
        prior = MultiGrainedPrior(num_codes=CODES, grid=(64, 64), query_blocks_per_image=drawn)
        assert prior.drawn_blocks((64, 64), train=False) == 4
