"""The multi-grained prior's training masks, and its loss against a float64 oracle."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_prior import (
    BLOCK,
    BLOCKS,
    CLASSES,
    CODES,
    GRID,
    IMAGES,
    MASK,
    make,
    own_cells,
    random_codes,
    spied_loss,
    window_of,
)

from vqjax.tokens import Tokens

# Masks of training


@pytest.mark.parametrize(
    ("mask_ratio", "context"),
    [(None, "random"), (0.6, "prefix"), (0.25, "mixed"), (0.5, "mixed"), (1.0, "random")],
)
def test_masked_tokens_of_each_query_block_are_ceil_of_the_ratio(mask_ratio, context):
    prior, variables = make()
    call = spied_loss(prior, variables, random_codes(), mask_ratio=mask_ratio, context=context)
    total = 0
    for block in range(len(BLOCKS)):
        slots, _ = own_cells(block)
        count = (call.window[:, block, slots] == MASK).sum(-1)
        total += count.sum()
        if mask_ratio is None:
            assert (count >= 1).all() and len(set(count)) > 1
        else:
            np.testing.assert_array_equal(count, np.ceil(mask_ratio * len(slots)))
    assert call.number == total


def many_draws(prior, variables, draws, **options):
    """Windows and hidden blocks of the global map, with the images of all draws in one axis."""
    window, hidden = [], []
    p = jax.tree.map(np.asarray, variables["params"])
    embedded = np.repeat(p["code_embedding"]["embedding"][None, MASK], BLOCK**2, axis=0)
    convolution = p["block_convolution"]
    masked_token = np.einsum("qc,qcd->d", embedded, convolution["kernel"]) + convolution["bias"]
    for seed in range(draws):
        call = spied_loss(prior, variables, random_codes(), seed=seed, **options)
        window.append(call.window)
        hidden.append(np.isclose(call.block_tokens, masked_token, atol=1e-4).all(-1))
    return np.concatenate(window), np.concatenate(hidden)


def test_drawn_mask_ratios_follow_the_cosine_schedule():
    prior, variables = make()
    window, hidden = many_draws(prior, variables, 50, context="random")
    # The first block is whole: 9 tokens.
    slots, _ = own_cells(0)
    count = (window[:, 0, slots] == MASK).sum(-1)
    r = (np.arange(100_000) + 0.5) / 100_000
    exact = np.bincount(np.ceil(np.cos(np.pi / 2 * r) * 9).astype(int), minlength=10)[1:] / len(r)
    observed = np.bincount(count, minlength=10)[1:]
    assert scipy.stats.chisquare(observed, exact * len(count)).pvalue > 0.01
    block_rate = hidden[:, 0, 1:].mean(-1)
    np.testing.assert_allclose(block_rate.mean(), 2 / np.pi, atol=0.04)
    assert abs(np.corrcoef(count, block_rate)[0, 1]) < 0.12


@pytest.mark.parametrize("halo_mask", ["query", "own", "block"])
def test_the_halo_is_masked_at_the_rate_that_its_setting_says(halo_mask):
    prior, variables = make(halo_mask=halo_mask)
    window, hidden = many_draws(prior, variables, 50, context="random")
    own = [i for i, _, _, own in window_of(0) if own]
    halo = [
        (i, (row // BLOCK) * 3 + column // BLOCK) for i, row, column, o in window_of(0) if not o
    ]
    slots, blocks = np.array(halo).T
    count, masked = (window[:, 0, own] == MASK).sum(-1), window[:, 0, slots] == MASK
    with_query = np.corrcoef(count, masked.mean(-1))[0, 1]
    assert with_query > 0.8 if halo_mask == "query" else abs(with_query) < 0.12
    in_masked = hidden[:, 0, blocks]
    np.testing.assert_allclose(masked[in_masked].mean(), 2 / np.pi, atol=0.05)
    # Where the map shows a block, its cells in the halo are shown too.
    shown = masked[~in_masked].mean()
    np.testing.assert_allclose(shown, 0 if halo_mask == "block" else 2 / np.pi, atol=0.05)


def test_a_masked_query_block_with_all_its_surroundings_known_is_trained():
    prior, variables = make()
    window, hidden = many_draws(prior, variables, 30)
    own, _ = own_cells(0)
    whole = (window[:, 0, own] == MASK).all(-1)
    around = [i for i, _, _, own in window_of(0) if not own]
    known = (window[:, 0, around] != MASK).all(-1) & ~hidden[:, 0, 1:].any(-1)
    assert (whole & known).sum() >= 5


def test_around_everything_but_the_query_block_is_known():
    prior, variables = make()
    window, hidden = many_draws(prior, variables, 1, context="around", mask_ratio=1.0)
    assert not hidden[:, ~np.eye(len(BLOCKS), dtype=bool)].any()
    for block in range(len(BLOCKS)):
        for slot, _, _, own in window_of(block):
            assert ((window[:, block, slot] == MASK) == own).all()


def test_frames_are_displaced_by_whole_blocks_for_some_of_the_query_blocks_of_a_step():
    shares, tokens = {}, Tokens.dense(jnp.asarray(random_codes()))
    for share, train in ((0.0, True), (0.5, True), (0.5, False)):
        prior, _ = make(frame_shift=share)
        draw = prior.bind({}, rngs={"mask": jax.random.key(0)})._draw_masks
        draws = [draw(tokens, train, None, "mixed").frames for _ in range(12)]
        frames = np.concatenate([np.asarray(draw) for draw in draws])
        place = prior.layout(GRID).block_place - frames
        assert (place >= 0).all() and (place < prior.layout(GRID).frame_grid).all()
        shares[share, train] = (frames != 0).any(-1)
    assert not shares[0.0, True].any() and not shares[0.5, False].any()
    # A sixth of the displaced ones comes to lie where it was.
    count = shares[0.5, True].sum()
    assert scipy.stats.binomtest(int(count), shares[0.5, True].size, 0.5 * 5 / 6).pvalue > 0.01


@pytest.mark.parametrize(("share", "prefix"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_papers_recipe_has_no_prefix_contexts(share, prefix):
    prior, variables = make(prefix_context=share)
    _, hidden = many_draws(prior, variables, 4, mask_ratio=1.0)
    assert (~hidden[:, -1, 0]).mean() == prefix


def test_mixed_contexts_are_half_prefix_half_random_drawn_per_query_block():
    prior, variables = make()
    window, hidden = many_draws(prior, variables, 20, mask_ratio=1.0)
    # At ratio 1 a random context hides everything, a prefix shows all earlier blocks.
    prefix = ~hidden[:, :, 0]
    for block in range(1, len(BLOCKS)):
        for other in range(len(BLOCKS)):
            expected = prefix[:, block] if other < block else np.zeros(len(hidden), bool)
            if other != block:
                np.testing.assert_array_equal(~hidden[:, block, other], expected)
        for slot, row, column, own in window_of(block):
            earlier = (row // BLOCK) * 3 + column // BLOCK < block and not own
            shown = prefix[:, block] if earlier else np.zeros(len(hidden), bool)
            np.testing.assert_array_equal(window[:, block, slot] != MASK, shown)
    count = prefix[:, 1:].sum(1)
    observed = np.bincount(count, minlength=6)
    exact = scipy.stats.binom.pmf(np.arange(6), 5, 0.5)
    assert scipy.stats.chisquare(observed, exact * len(count)).pvalue > 0.01


# The loss


@pytest.mark.parametrize(
    ("drawn", "train", "smoothing", "masks"),
    [
        (None, True, 0.1, {"context": "random"}),
        (2, False, 0.0, {"context": "random"}),
        (2, True, 0.1, {"context": "prefix", "mask_ratio": 0.6}),
    ],
)
def test_loss_is_the_mean_cross_entropy_of_exactly_the_masked_query_tokens(
    drawn, train, smoothing, masks
):
    prior, variables = make(query_blocks_per_image=drawn)
    codes = random_codes()
    valid = np.random.default_rng(0).uniform(size=IMAGES) < 0.5
    call = spied_loss(prior, variables, codes, train=train, valid=valid, **masks)
    queries = drawn if train and drawn else len(BLOCKS)
    assert call.query.shape == (IMAGES, queries)

    nats, hits = [], []
    for image, s in itertools.product(np.flatnonzero(valid), range(queries)):
        block = call.query[image, s]
        for slot, row, column, own in window_of(block):
            if not own or call.window[image, s, slot] != MASK:
                continue
            logits = call.logits[image, s].astype(np.float64)
            top, left = BLOCKS[block]
            log_p = scipy.special.log_softmax(logits[(row - top) * BLOCK + column - left])
            target = np.full(CODES, smoothing / CODES)
            target[codes[image, row, column]] += 1 - smoothing
            nats.append(-(target * log_p).sum())
            hits.append(log_p.argmax() == codes[image, row, column])
    assert call.number == len(nats)
    np.testing.assert_allclose(call.loss, np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(call.metrics["accuracy"], np.mean(hits), rtol=1e-5)


def test_a_batch_without_valid_images_predicts_nothing():
    prior, variables = make()
    call = spied_loss(
        prior, variables, random_codes(), context="random", valid=np.zeros(IMAGES, bool)
    )
    assert call.loss == 0 and call.number == 0


def test_drawn_query_blocks_are_uniform_and_leave_the_loss_unbiased():
    # With these the masks do not depend on the key, so the draw of blocks is all that varies.
    options = {"mask_ratio": 1.0, "context": "prefix"}
    codes, draws = np.repeat(random_codes()[:1], IMAGES, axis=0), 94
    prior, variables = make(query_blocks_per_image=2)
    calls = [spied_loss(prior, variables, codes, seed=seed, **options) for seed in range(draws)]
    pairs = [tuple(sorted(pair)) for call in calls for pair in call.query.tolist()]
    counts = [pairs.count(pair) for pair in itertools.combinations(range(len(BLOCKS)), 2)]
    assert sum(counts) == draws * IMAGES  # two different blocks in every image
    assert scipy.stats.chisquare(counts).pvalue > 0.01

    every, _ = make()
    whole = spied_loss(every, variables, codes, **options)
    nats, number = sum(call.loss * call.number for call in calls), sum(c.number for c in calls)
    np.testing.assert_allclose(nats / draws, whole.loss * whole.number * 2 / len(BLOCKS), rtol=0.03)
    np.testing.assert_allclose(nats / number, whole.loss, rtol=0.03)


def test_the_loss_has_a_finite_gradient_for_every_parameter():
    prior, variables = make(num_ids=CLASSES)
    # The padding id is a key that nobody sees: every other row of the table counts.
    condition = np.arange(IMAGES, dtype=np.int32)[:, None] % (CLASSES + 1)

    def loss(variables, codes, condition):
        rngs = {"mask": jax.random.key(0)}
        tokens = Tokens.dense(codes)
        return prior.apply(variables, tokens, condition, False, method="loss", rngs=rngs)[0]

    gradient = jax.jit(jax.grad(loss))(variables, random_codes(), condition)
    for path, leaf in jax.tree.leaves_with_path(jax.tree.map(np.asarray, gradient)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


# Held-out images


@functools.cache
def held_out(prior):
    """Sums of held-out images, compiled once, drawn with the mask key of `spied_loss`."""

    @jax.jit
    def sums(variables, codes, condition, valid, seed):
        key, _ = jax.random.split(jax.random.key(seed))
        tokens = Tokens.dense(codes)
        return prior.apply(variables, tokens, condition, valid, key, method="held_out")

    return sums


def test_held_out_sums_are_the_losses_at_each_ratio_over_valid_images():
    prior, variables = make()
    codes, condition = random_codes(), np.zeros((IMAGES, 0), np.int32)
    valid = np.arange(IMAGES) % 3 > 0
    sums = held_out(prior)(variables, codes, condition, valid, 7)
    expected = {f"loss_at_{ratio}": (ratio, "prefix") for ratio in (0.25, 0.5, 0.75, 1.0)}
    expected["loss_inpaint"] = 1.0, "around"
    assert list(sums) == list(expected)
    for name, (ratio, context) in expected.items():
        options = {"mask_ratio": ratio, "context": context, "train": False}
        call = spied_loss(prior, variables, codes, seed=7, valid=valid, **options)
        nats, number = sums[name]
        assert number == call.number > 0
        np.testing.assert_array_equal(nats, call.loss * call.number)

    # Images that are not valid have no influence, and with none the sums are zero.
    other = np.where(valid[:, None, None], codes, (codes + 1) % CODES)
    again = held_out(prior)(variables, other, condition, valid, 7)
    jax.tree.map(np.testing.assert_array_equal, again, sums)
    nothing = held_out(prior)(variables, codes, condition, valid & ~valid, 7)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))
    # What is valid does count, and so does the key.
    for codes_of, seed in ((random_codes(seed=1), 7), (codes, 8)):
        moved = held_out(prior)(variables, codes_of, condition, valid, seed)
        assert all(moved[name][0] != sums[name][0] for name in list(sums)[:3])
