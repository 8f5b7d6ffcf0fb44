"""Efficient-VQGAN's tokenizer: shapes and sizes of the paper, locality, and tokens that decode."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizer import (
    assert_every_parameter_learns,
    assert_last_layer,
    assert_tokens_decode_to_the_reconstruction,
    large_parameters,
    random_images,
    run_everything,
)

from vqjax.errors import InputError
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.tokens import Tokens

# Widths and depths of each downsampling factor at full size.
FULL = {
    4: ((128,), (6,)),
    8: ((128, 256), (2, 6)),
    16: ((128, 256, 512), (2, 2, 6)),
    32: ((128, 256, 512, 512), (2, 2, 2, 6)),
}


def tiny(**fields):
    """One merging, a shifted window in every level, f = 4."""
    quantizer = VectorQuantizer(32, 4, **fields.pop("quantizer", {}))
    defaults = {
        "patch_size": 2,
        "widths": (8, 16),
        "depths": (1, 2),
        "head_dim": 4,
        "window": 4,
        "mlp_ratio": 2,
    }
    return EfficientVQGAN(quantizer, **{**defaults, **fields})


@functools.cache
def variables_of(model):
    return large_parameters(model, random_images(32, 32))


@functools.cache
def jitted(model, method="__call__"):
    return jax.jit(functools.partial(model.apply, variables_of(model), method=method))


# Blocks without a shift in two levels; one level, and the codebook of the configs.
UNSHIFTED = {"depths": (1, 1)}
SHALLOW = {"widths": (8,), "depths": (1,), "quantizer": {"learning": "ema", "latent_norm": "layer"}}


@functools.cache
def wide():
    """The whole model on a wide image, and whether each pixel moves the one in the middle."""
    images = random_images(16, 192)
    weights = np.zeros(images.shape, np.float32)
    weights[0, 8, 96] = 1
    seen = run_everything(tiny(), variables_of(tiny()), images, weights, 0.0)["to_images"]
    out = run_everything(tiny(), variables_of(tiny()), images)
    return out, np.any(seen[0] != 0, axis=-1)


@functools.cache
def shallow():
    """As `wide`, of a shallow model and the pixel in row 11, column 20."""
    model, images = tiny(**SHALLOW), random_images(24, 32)
    weights = np.zeros(images.shape, np.float32)
    weights[0, 11, 20] = 1
    out = run_everything(model, variables_of(model), images, weights, 0.0)
    return out, np.any(out["to_images"][0] != 0, axis=-1)


# Sizes.


def linear(inputs, outputs, bias=True):
    return inputs * outputs + bias * outputs


def count_parameters(widths, depths, patch=4, head_dim=32, window=8, code_dim=256, codes=1024):
    """Parameters of the tokenizer by the paper's description."""

    def block(width):
        attention = linear(width, 3 * width) + linear(width, width)
        attention += (2 * window - 1) ** 2 * width // head_dim
        return attention + linear(width, 4 * width) + linear(4 * width, width) + 2 * 2 * width

    stages = sum(depth * block(width) for width, depth in zip(widths, depths, strict=True))
    pairs = list(itertools.pairwise(widths))
    encoder = linear(3 * patch**2, widths[0]) + 2 * widths[0] + stages
    encoder += sum(2 * 4 * fine + linear(4 * fine, coarse, bias=False) for fine, coarse in pairs)
    encoder += 2 * widths[-1] + linear(widths[-1], code_dim)

    half = widths[0] // 2
    decoder = linear(code_dim, widths[-1]) + stages
    decoder += sum(linear(coarse, 4 * fine, bias=False) + 2 * fine for fine, coarse in pairs)
    # The patch embedding of 4 is undone by one more expanding and the nearest-neighbour doubling.
    decoder += linear(widths[0], 4 * half, bias=False) + 2 * half
    decoder += linear(9 * half, half) + 2 * half
    return {
        "encoder": encoder,
        "decoder": decoder,
        "last_convolution": linear(9 * half, 3),
        "quantizer": codes * code_dim,
    }


@pytest.mark.parametrize(("f", "millions"), [(4, None), (8, 11.03), (16, 43.75), (32, None)])
def test_the_full_size(f, millions):
    """Shapes at every f; parameters at those that the paper tells of."""
    widths, depths = FULL[f]
    # Blocks take long to trace and change no shape.
    depths = depths if millions else (1,) * len(depths)
    model = EfficientVQGAN(VectorQuantizer(), widths=widths, depths=depths)
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    (reconstructions, tokens, loss, _), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    side = 256 // f
    assert model.downsampling == f and model.grid(256, 256) == tokens.grid == (side, side)
    assert tokens.codes.shape == tokens.positions.shape == (2, side * side)
    assert reconstructions.shape == images.shape and loss.shape == ()
    assert reconstructions.dtype == loss.dtype == jnp.float32

    params = variables["params"]
    counts = {
        part: sum(math.prod(p.shape) for p in jax.tree.leaves(params[part])) for part in params
    }
    assert counts == count_parameters(widths, depths)
    if millions:
        np.testing.assert_allclose(sum(counts.values()) / 1e6, millions, atol=0.005)
    # What the adaptive weight of an adversarial loss reads.
    assert params["last_convolution"]["kernel"].shape == (3, 3, widths[0] // 2, 3)


def test_parameters_do_not_depend_on_the_image():
    model = tiny(widths=(8,), depths=(2,))
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), random_images(*size)))
        for size in ((4, 4), (16, 64))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_one_set_of_weights_takes_any_grid(size):
    model, tile = tiny(**UNSHIFTED), random_images(16, 16)
    images = np.tile(tile, (1, size[0] // 16, size[1] // 16, 1))
    reconstructions, tokens, _, _ = jitted(model)(images)
    assert reconstructions.shape == images.shape and np.all(np.isfinite(reconstructions))
    assert tokens.grid == model.grid(*size) == (size[0] // 4, size[1] // 4)
    assert len(np.unique(tokens.codes)) > 8


# Locality.


def test_codes_of_a_window_do_not_depend_on_what_is_around_it():
    # Blocks without a shift: a tiled image has the codes of its tile, on any grid.
    model, tile = tiny(**UNSHIFTED), random_images(16, 16)
    code_map = np.asarray(jitted(model)(tile)[1].code_map)
    assert len(np.unique(code_map)) > 4
    tiled = jitted(model)(np.tile(tile, (1, 2, 3, 1)))[1].code_map
    np.testing.assert_array_equal(tiled, np.tile(code_map, (1, 2, 3)))


def test_a_pixel_depends_on_its_own_window_without_shifts():
    # Windows of 4 cells of 2 pixels; the two convolutions reach 2 pixels, not past the window.
    expected = np.zeros((24, 32), bool)
    expected[8:16, 16:24] = True
    np.testing.assert_array_equal(shallow()[1], expected)


def test_a_pixel_depends_on_a_bounded_neighbourhood():
    reach = np.abs(np.flatnonzero(wide()[1].any(0)) - 96)
    # A block reaches 3 cells; per side of the codes, one of 2 pixels and two of 4; the cells
    # themselves 2 and 4; the tail 2 pixels.
    bound = 2 * (3 * 2 + 2 * 3 * 4 + 2 + 4) + 2
    assert 16 < reach.max() <= bound < 96, reach.max()


def test_tokens_far_away_leave_the_image_as_it_is():
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 32, (1, 4, 48)).astype(np.int32), 2, axis=0)
    codes[1, :, 24:] = rng.integers(0, 32, (4, 24))
    decode = jax.jit(lambda codes: jitted(tiny(), "decode")(Tokens.dense(codes)))
    one, other = np.asarray(decode(codes))
    # A shifted window takes in two tokens of 4 pixels before the change, the finer level's windows
    # end there as well, and the tail's two convolutions reach 2 pixels further.
    left = 4 * (24 - 2) - 2
    np.testing.assert_allclose(one[:, :left], other[:, :left], atol=1e-6)
    assert np.all(np.any(one[:, left:] != other[:, left:], axis=(0, 2)))


# Tokens.


@pytest.mark.parametrize("run", [wide, shallow])
def test_decoding_the_tokens_gives_the_reconstruction(run):
    """With other codebooks it follows from the quantizer's own tests."""
    assert_tokens_decode_to_the_reconstruction(run()[0])


def test_every_parameter_learns():
    assert_every_parameter_learns(wide()[0]["to_params"])


def test_the_last_layer_makes_the_pixels_of_the_features():
    """The contract of the adversarial loss's adaptive weight."""
    assert_last_layer(tiny(), variables_of(tiny()), wide()[0])


def test_bfloat16_keeps_parameters_pixels_and_losses_in_float32():
    model = tiny(widths=(8,), depths=(1,), dtype="bfloat16", remat=True)
    (images, _, loss, _), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), random_images(16, 16)
    )
    assert images.dtype == loss.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# Bad input.


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30, 32), "30 pixels .* f=4 and window=4: the nearest that works is 16 or 32"),
        # 40 pixels are 20 and 10 cells: the window divides the first alone.
        ((32, 40), "40 pixels .* is 32 or 48"),
        ((3, 32), "(?m)3 pixels .* is 4$"),
        ((0, 32), "(?m)0 pixels .* is 4$"),
    ],
)
def test_a_resolution_that_does_not_fit_names_the_nearest(size, message):
    model = tiny()
    with pytest.raises(InputError, match=message):
        model.grid(*size)
    for method in ("__call__", "encode"):
        with pytest.raises(InputError, match=message):
            jax.eval_shape(
                functools.partial(model.apply, method=method),
                variables_of(model),
                random_images(*size),
            )


def test_the_nearest_resolutions_do_work_and_none_between():
    model = tiny()
    fitting = []
    for side in range(1, 130):
        try:
            model.grid(side, 32)
            fitting.append(side)
        except InputError as error:
            named = [int(word) for word in str(error).split("works is ")[1].split(" or ")]
            assert all(model.grid(s, 32) for s in named)
            below, above = ([s for s in named if s < side], [s for s in named if s > side])
            assert below == fitting[-1:] and len(above) == 1 and above[0] - side <= 16
    # Every level's map is no larger than the window of 4 cells, or a multiple of it.
    assert fitting == [4, 8, 16, 32, 48, 64, 80, 96, 112, 128]


def test_tokens_of_a_grid_that_does_not_fit_are_refused():
    def decode(variables):
        return tiny().apply(variables, Tokens.none(1, (4, 10)), method="decode")

    with pytest.raises(InputError, match=r"40 pixels .* is 32 or 48"):
        jax.eval_shape(decode, variables_of(tiny()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, "patch_size=3: a power of two"),
        ({"patch_size": 1}, "patch_size=1: at least 2"),
        ({"mlp_ratio": 0}, "mlp_ratio=0: at least 1"),
        ({"depths": (1, -1)}, "depths has -1: 0 or more"),
        ({"widths": (8, 16, 32)}, "depths=.*: one depth for each of"),
        ({"widths": (), "depths": ()}, "at least one width"),
        ({"widths": (8, 18)}, "widths=.*18.*: multiples of head_dim=4"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"window": 0}, "window=0"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_at_once(fields, message):
    with pytest.raises(InputError, match=message) as error:
        tiny(**fields)
    assert "\n" not in str(error.value)
