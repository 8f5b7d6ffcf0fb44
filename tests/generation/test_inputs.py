"""Arguments of the Python API: one line says what is wrong with them."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vqjax.errors import InputError
from vqjax.generation.inputs import (
    checked_count,
    checked_image,
    checked_images,
    checked_mask,
    checked_tokens,
)
from vqjax.runs.build import build_stage_tokenizer
from vqjax.tokens import Tokens

PICTURE = np.zeros((4, 6, 3), np.uint8)


def refused(check, value, message):
    with pytest.raises(InputError, match=message) as e:
        check(value)
    assert "\n" not in str(e.value)


def test_images_are_bytes():
    np.testing.assert_array_equal(checked_images([PICTURE]), PICTURE[None])
    refused(checked_images, PICTURE[None] / 255, r"images: uint8 .* not float64 \[1, 4, 6, 3\]")
    refused(
        checked_images, PICTURE, r"images: uint8 \[n, H, W, 3\] is needed, not uint8 \[4, 6, 3\]"
    )
    refused(checked_image, PICTURE[..., :1], r"image: uint8 \[H, W, 3\] is needed")


def test_a_mask_is_a_picture_or_a_map():
    hole = np.zeros((4, 6), bool)
    hole[1, 2] = True
    picture = np.where(hole[..., None], PICTURE + 255, PICTURE)
    for mask in (hole, hole * np.uint8(255), np.repeat(hole[..., None], 3, 2), picture):
        np.testing.assert_array_equal(checked_mask(mask), picture)
    refused(checked_mask, hole * 1.0, r"mask: uint8 \[H, W\] or \[H, W, 3\], or bool is needed")


def test_a_count_is_a_whole_number():
    assert checked_count(np.int64(3)) == 3
    for count in (0, -1, 1.5, "3", None, True):
        refused(checked_count, count, "count=.*: a whole number from 1 is needed")


def test_tokens_are_those_of_the_tokenizer():
    tokenizer = build_stage_tokenizer(tiny.get_config("path=x"), "tokenizer")

    def check(tokens):
        return checked_tokens(tokens, tokenizer)

    dense = Tokens.dense(jnp.zeros((2, 4, 4), jnp.int32))
    assert check(dense) is dense
    refused(check, dense.codes, "tokens: those of `encode` are needed")
    for wrong in (32, -1):
        refused(check, Tokens.dense(dense.code_map + wrong), "codes from 0 to 31 are needed")
    turned = Tokens(dense.codes, dense.positions[:, ::-1], dense.grid)
    refused(check, turned, "in raster order")
    refused(check, Tokens(dense.codes[:, :5], dense.positions[:, :5], dense.grid), "for each cell")


def test_tokens_are_as_many_whole_positions_as_codes():
    tokenizer = build_stage_tokenizer(tiny.get_config("path=x"), "tokenizer")
    codes, cells = jnp.zeros((2, 4), jnp.int32), jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
    wrong = {
        "codes_of_one_image": (codes[0], cells[0]),
        "other_numbers": (codes, cells[:, :3]),
        "other_images": (codes, cells[:1]),
        "floats": (codes.astype(jnp.float32), cells),
        "none": (codes[:, :0], cells[:, :0]),
    }
    for code, position in wrong.values():
        # As an import would make them, which nothing has checked.
        tokens = Tokens.tree_unflatten((4, 4), (code, position))
        refused(lambda x: checked_tokens(x, tokenizer), tokens, r"whole numbers \[images, tokens\]")


def test_sparse_tokens_lie_at_cells_of_their_own(monkeypatch):
    tokenizer = build_stage_tokenizer(tiny.get_config("path=x"), "tokenizer")
    monkeypatch.setattr(type(tokenizer), "token_kind", "sparse")

    def check(positions):
        codes = jnp.zeros((2, 4), jnp.int32)
        return checked_tokens(Tokens(codes, jnp.asarray(positions), (4, 4)), tokenizer)

    # In any order; any number of them at no cell.
    assert check([[3, 0, 15, 7], [16, 2, 16, 1]])
    for wrong in (17, -1):
        message = "positions from 0 to 15 are needed, or 16 for no token"
        refused(check, [[3, 0, 15, 7], [1, 2, 3, wrong]], message)
    message = "image 1 has more than one code at position 9"
    refused(check, [[3, 0, 15, 7], [9, 2, 9, 1]], message)
