"""Editing: what an edit sees, what it may change, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_prior import CODES, make, spec_of
from tiny_sampler import Watched, blocks_of, cells_of, noise_logits

from vqjax.errors import InputError
from vqjax.generation import editing
from vqjax.generation.codec import decode
from vqjax.quantizers import VectorQuantizer
from vqjax.samplers.multigrained import MultiGrainedSampling, sample
from vqjax.tokenizers import EfficientVQGAN
from vqjax.tokens import Tokens

# Windows of 4 divide neither level's map, and f = 4 makes 5 x 7 cells, with partial blocks.
HEIGHT, WIDTH, F = 20, 28, 4
TOKENIZER = EfficientVQGAN(
    VectorQuantizer(CODES, 4, latent_norm="layer"),
    patch_size=2,
    widths=(8, 8),
    depths=(1, 2),
    head_dim=8,
    window=4,
)


@functools.cache
def trained():
    """Variables of the tokenizer with which neighbouring cells have different codes."""
    keys = {"params": jax.random.key(0), "restart": jax.random.key(0)}
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: TOKENIZER.init(keys, x), images)
    rng = np.random.default_rng(0)

    def fill(path, p):
        values = rng.normal(0, 0.1 if path[-1].key == "bias" else 0.5, p.shape)
        return jnp.asarray(values + (path[-1].key == "scale"), p.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def picture(seed=0, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def mask_picture(hole):
    return np.repeat(np.where(hole, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def hole_of(seed=0, height=HEIGHT, width=WIDTH):
    """A box and a few lone pixels."""
    hole = np.zeros((height, width), bool)
    hole[6:11, 9:14] = True
    hole[0, -1] = hole[17, 2] = True
    return hole


def results(edit, composite=True, seed=0, batch=3):
    """The whole path, and the tokens before and after."""
    known = editing.known_tokens(TOKENIZER, trained(), edit, batch)
    prior, variables = make()
    condition, settings = jnp.zeros((batch, 0), jnp.int32), MultiGrainedSampling(steps=2)
    key = jax.random.key(seed)
    tokens = sample(prior, variables, key, condition, known, settings, edit.grid)
    images = decode(TOKENIZER, trained(), tokens)
    if composite:
        images = editing.composite(images, edit)
    given = np.asarray(known.positions) < known.positions.shape[1]
    return np.asarray(images), np.asarray(known.codes), given, np.asarray(tokens.codes)


def test_nothing_under_the_mask_has_any_influence():
    image, hole = picture(), hole_of()
    other = np.where(hole[..., None], picture(seed=1), image)
    first, second = (
        results(editing.inpaint(TOKENIZER, x, mask_picture(hole))) for x in (image, other)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_known_stays_and_what_is_not_is_drawn():
    edit = editing.inpaint(TOKENIZER, picture(), mask_picture(hole_of()))
    images, known, known_mask, codes = results(edit)
    cells = edit.hole.reshape(5, F, 7, F).any((1, 3)).reshape(-1)
    assert 4 < cells.sum() < 10
    np.testing.assert_array_equal(known_mask, np.repeat(~cells[None], 3, axis=0))
    np.testing.assert_array_equal(codes[:, ~cells], known[:, ~cells])
    assert ((codes >= 0) & (codes < CODES)).all()
    for image in images:
        np.testing.assert_array_equal(image[~edit.hole], edit.canvas[~edit.hole])
    # Diverse in one call, and the same for the same seed.
    assert (images[0] != images[1]).any() and (images[1] != images[2]).any()
    np.testing.assert_array_equal(results(edit)[0], images)
    assert (results(edit, seed=1)[0] != images).any()
    raw = results(edit, composite=False)[0]
    np.testing.assert_array_equal(raw[:, edit.hole], images[:, edit.hole])
    assert (raw[:, ~edit.hole] != images[:, ~edit.hole]).any()


def test_tokens_and_pixels_are_those_of_the_edge_padded_map():
    image = picture()
    edit = editing.replace(TOKENIZER, image, (0, 0, 1, 1))
    filled = editing.fill_hole(edit)
    # The nearest sides that windows of 4 divide at both levels, of 2 and of 4 pixels a cell.
    padded = np.pad(filled, ((0, 32 - HEIGHT), (0, 32 - WIDTH), (0, 0)), mode="edge")
    run = jax.jit(TOKENIZER.apply, static_argnames="method")
    tokens = run(trained(), jnp.asarray(padded[None] / 127.5 - 1, jnp.float32), method="encode")
    known = editing.known_tokens(TOKENIZER, trained(), edit, 1)
    code_map = np.asarray(known.codes).reshape(5, 7)
    np.testing.assert_array_equal(code_map, tokens.code_map[0, :5, :7])
    assert len(np.unique(code_map)) > 5

    images = decode(TOKENIZER, trained(), Tokens.dense(jnp.asarray(code_map)[None]))
    whole = np.pad(code_map, ((0, 3), (0, 1)), mode="edge")
    pixels = run(trained(), Tokens.dense(jnp.asarray(whole)[None]), method="decode")
    expected = np.clip((np.asarray(pixels)[0, :HEIGHT, :WIDTH] + 1) * 127.5, 0, 255)
    assert np.abs(np.asarray(images[0], np.float64) - expected).max() < 0.51
    assert images.dtype == jnp.uint8 and 0 < images.mean() < 255


def test_only_blocks_with_unknown_tokens_are_visited():
    edit = editing.inpaint(TOKENIZER, picture(), mask_picture(hole_of()))
    known = editing.known_tokens(TOKENIZER, trained(), edit, 2)
    spec = spec_of(steps=2)
    given = np.asarray(known.positions) < known.positions.shape[1]
    _, calls = Watched(noise_logits).sample(known.codes, given, spec)
    unknown = ~given[0]
    visits = []
    for block in range(len(blocks_of(spec))):
        cells = [cell for cell in cells_of(spec, block) if cell is not None]
        visits += [block] * min(int(unknown[cells].sum()), spec.steps)
    assert [int(query[0]) for _, query, _ in calls] == visits
    assert 0 < len(set(visits)) < len(blocks_of(spec))


def test_the_hole_is_filled_with_the_nearest_pixel_outside():
    edit = editing.inpaint(TOKENIZER, picture(), mask_picture(hole_of()))
    filled = editing.fill_hole(edit)
    outside = np.argwhere(~edit.hole)
    np.testing.assert_array_equal(filled[~edit.hole], edit.canvas[~edit.hole])
    for y, x in np.argwhere(edit.hole):
        distance = ((outside - [y, x]) ** 2).sum(1)
        nearest = outside[distance == distance.min()]
        assert any((filled[y, x] == edit.canvas[i, j]).all() for i, j in nearest)
    everything = editing.Edit(edit.canvas, np.ones_like(edit.hole), edit.grid)
    np.testing.assert_array_equal(editing.fill_hole(everything), 128)


def test_every_value_of_a_kept_pixel_survives():
    canvas = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    edit = editing.replace(TOKENIZER, canvas, (0, 0, 3, 3))
    images = editing.composite(jnp.full((1, 16, 16, 3), 7, jnp.uint8), edit)
    np.testing.assert_array_equal(images[0, 3:], canvas[3:])
    assert (np.asarray(images)[0, :3, :3] == 7).all()


def test_outpainting_puts_the_image_on_a_larger_canvas():
    image = picture()
    edit = editing.outpaint(TOKENIZER, image, left=8, top=4, bottom=12)
    assert edit.canvas.shape == (HEIGHT + 16, WIDTH + 8, 3)
    assert edit.grid == (9, 9)
    np.testing.assert_array_equal(edit.canvas[4:-12, 8:], image)
    expected = np.ones(edit.hole.shape, bool)
    expected[4:-12, 8:] = False
    np.testing.assert_array_equal(edit.hole, expected)


def test_replacement_takes_the_box():
    edit = editing.replace(TOKENIZER, picture(), (3, 5, 28, 20))
    y, x = np.indices((HEIGHT, WIDTH))
    np.testing.assert_array_equal(edit.hole, (x >= 3) & (y >= 5))


def test_grey_of_a_mask_counts_from_its_middle():
    mask = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
    mask[3, 4] = 128
    edit = editing.inpaint(TOKENIZER, picture(), mask)
    np.testing.assert_array_equal(np.argwhere(edit.hole), [[3, 4]])


def test_the_hole_is_shown_hatched():
    edit = editing.inpaint(TOKENIZER, picture(), mask_picture(hole_of()))
    shown = editing.show_hole(edit)
    np.testing.assert_array_equal(shown[~edit.hole], edit.canvas[~edit.hole])
    assert set(np.unique(shown[edit.hole])) == {160, 200}


def test_sparse_tokens_have_no_map_to_edit(monkeypatch):
    monkeypatch.setattr(EfficientVQGAN, "token_kind", "sparse")
    expected = "needs a code for every cell .* EfficientVQGAN makes sparse tokens"
    for edit in (
        lambda: editing.inpaint(TOKENIZER, picture(), mask_picture(hole_of())),
        lambda: editing.outpaint(TOKENIZER, picture(), left=4),
        lambda: editing.replace(TOKENIZER, picture(), (0, 0, 4, 4)),
    ):
        with pytest.raises(InputError, match=f"^editing {expected}"):
            edit()
    # 5 cells are no whole windows of 4.
    some = Tokens(jnp.zeros((1, 9), jnp.int32), jnp.arange(9, dtype=jnp.int32)[None], (5, 7))
    with pytest.raises(InputError, match=f"^an image of 28x20 pixels {expected}"):
        decode.__wrapped__(TOKENIZER, {}, some)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda: editing.inpaint(TOKENIZER, picture(), picture(width=24)),
            "mask has 24x20 pixels, but the image 28x20",
        ),
        (
            lambda: editing.inpaint(TOKENIZER, picture(), np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
            "there is nothing to fill",
        ),
        (lambda: editing.replace(TOKENIZER, picture(), (0, 0, 29, 20)), "<= 28 and .* <= 20"),
        (lambda: editing.replace(TOKENIZER, picture(), (-1, 0, 8, 8)), "box=-1,0,8,8"),
        (lambda: editing.replace(TOKENIZER, picture(), (4, 9, 8, 9)), "box=4,9,8,9"),
        (
            lambda: editing.outpaint(TOKENIZER, picture(), left=4, right=10),
            "right=10: .* f=4 divides .* 8 or 12",
        ),
        (lambda: editing.outpaint(TOKENIZER, picture(), top=-4), "top=-4: .* 0 or 4"),
        (lambda: editing.outpaint(TOKENIZER, picture()), "a number above 0"),
        (
            lambda: editing.outpaint(TOKENIZER, picture(height=21, width=27), left=4),
            "27x21 pixels: f=4 has to divide .* to 28x20",
        ),
        (
            lambda: editing.replace(TOKENIZER, picture(height=12), (0, 0, 4, 4)),
            "28x12 pixels is too small: the tokenizer EfficientVQGAN needs 16x16",
        ),
    ],
    ids=["size", "black", "outside", "negative", "empty", "f", "below 0", "none", "sides", "small"],
)
def test_what_cannot_be_edited(edit, expected):
    with pytest.raises(InputError, match=expected):
        edit()
