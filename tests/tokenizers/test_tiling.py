"""Decoding in tiles gives the image that decoding as a whole gives, and takes less memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizer import large_parameters

from vqjax.errors import InputError
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.tokenizers.tiling import Tiling, swin_halo
from vqjax.tokens import Tokens


def tiny(depth, window, levels=1, patch_size=2):
    """`depth` Swin blocks in the finest level, a pair in the coarser one, if there is one."""
    fields = {
        "widths": (8, 16)[:levels],
        "depths": (depth, 2)[:levels],
        "head_dim": 4,
        "mlp_ratio": 1,
    }
    return EfficientVQGAN(VectorQuantizer(32, 4), patch_size=patch_size, window=window, **fields)


@functools.cache
def variables_of(model):
    images = jax.ShapeDtypeStruct((1, model.downsampling, model.downsampling, 3), jnp.float32)
    return large_parameters(model, images)


def decode(model, variables, codes, tile):
    return model.apply(variables, Tokens.dense(codes), tile, method="decode")


# Keyed by the halo too, which a test changes.
_decode = jax.jit(
    lambda model, variables, codes, tile, halo: decode(model, variables, codes, tile),
    static_argnames=("model", "tile", "halo"),
)


def difference(model, grid, tile):
    """The largest difference between a pixel decoded in tiles and the same decoded whole."""
    codes = np.random.default_rng(1).integers(0, 32, (2, *grid)).astype(np.int32)
    # All that decodes the whole has no halo.
    expected, image = (
        np.asarray(_decode(model, variables_of(model), codes, size, size and model.halo))
        for size in (0, tile)
    )
    assert image.shape == expected.shape and np.abs(expected).max() > 1
    return np.abs(image - expected).max()


# Depth, window, levels, patch size, grid, tile.
# Tiles that overlap at the end of an axis, and an axis shorter than a tile.
PAIR = (2, 4, 2, 2, (20, 4), 32)
# Windows that do not halve; a patch that is expanded once more.
DEEP = (3, 3, 1, 4, (21, 12), 12)


@pytest.mark.parametrize(
    ("depth", "window", "levels", "patch_size", "grid", "tile"),
    [
        (0, 2, 1, 2, (8, 6), 4),
        PAIR,
        DEEP,
    ],
)
def test_tiles_give_the_whole_image(depth, window, levels, patch_size, grid, tile):
    model = tiny(depth, window, levels, patch_size)
    assert difference(model, grid, tile) < 1e-5


def test_with_a_halo_of_a_window_less_they_do_not(monkeypatch):
    depth, window, levels, patch_size, grid, tile = PAIR
    model = tiny(depth, window, levels, patch_size)
    monkeypatch.setattr(EfficientVQGAN, "halo", model.halo - window)
    assert difference(model, grid, tile) > 1e-3


def test_the_halo_of_the_full_size_is_one_window():
    model = EfficientVQGAN(VectorQuantizer())
    assert model.halo == model.window == 8
    single_level = EfficientVQGAN(VectorQuantizer(), widths=(128,), depths=(6,))
    assert single_level.halo == 3 * 8


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8])
def test_the_halo_is_the_least_that_holds_what_is_looked_at(window):
    first = 20 * window
    for depth in range(7):
        for reach in (0, 1, 3):
            cells = set(range(first - reach, first + window + reach))
            for i in reversed(range(depth)):
                shift = window // 2 if i % 2 else 0
                windows = {(cell - shift) // window for cell in cells}
                cells = {c for c in range(40 * window) if (c - shift) // window in windows}
            needed = max(first - min(cells), max(cells) + 1 - first - window)
            halo = swin_halo(depth, window, reach)
            assert halo - window < needed <= halo and halo % window == 0


@pytest.mark.parametrize(
    ("size", "tile", "halo"), [((20, 12), 8, 4), ((4, 24), 8, 8), ((8, 8), 8, 4)]
)
def test_tiles_cover_the_map_and_crops_cover_their_halo(size, tile, halo):
    tiles = Tiling(size, tile, halo)
    covered = np.zeros(size, int)
    for origin, crop_origin in zip(tiles.tile_origins, tiles.crop_origins, strict=True):
        for axis, side in enumerate(size):
            end, crop_end = origin + tiles.tile_size, crop_origin + tiles.crop_size
            # The halo ends where the map does.
            assert 0 <= crop_origin[axis] <= max(origin[axis] - halo, 0)
            assert min(end[axis] + halo, side) <= crop_end[axis] <= side
            assert end[axis] <= side
        (top, left), (bottom, right) = origin, end
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    assert len(tiles.tile_origins) == math.ceil(size[0] / tile) * math.ceil(size[1] / tile)


def test_tiles_take_less_memory():
    model = tiny(1, 4)
    codes = jax.ShapeDtypeStruct((1, 64, 64), jnp.int32)

    def temporaries(tile):
        program = _decode.lower(model, variables_of(model), codes, tile, model.halo)
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(32) < temporaries(0) / 3


@pytest.mark.parametrize(
    ("tile", "near"), [(7, "8, and"), (12, "8 or 16"), (17, "16 or 24"), (-8, "8, and")]
)
def test_a_tile_that_cuts_windows_names_the_nearest(tile, near):
    model, codes = tiny(2, 4), jax.ShapeDtypeStruct((1, 8, 8), jnp.int32)
    for refuse in (
        lambda: model.check_tile(tile),
        lambda: jax.eval_shape(lambda v, c: decode(model, v, c, tile), variables_of(model), codes),
    ):
        with pytest.raises(InputError, match=f"tiles of {tile} pixels: .*works is {near}") as error:
            refuse()
        assert "\n" not in str(error.value)
    for side in (0, 8, 16, 24):
        model.check_tile(side)
