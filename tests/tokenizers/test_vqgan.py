"""The convolutional VQGAN: published sizes, any resolution, every pixel from all codes."""

import functools
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
from vqjax.tokenizers import build_tokenizer
from vqjax.tokenizers.vqgan import VQGAN
from vqjax.tokens import Tokens


def tiny(**fields):
    """One downsampling; normalised in groups of three and six channels."""
    defaults = {
        "width": 6,
        "multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_factors": (),
        "latent_width": 16,
    }
    return VQGAN(VectorQuantizer(32, 8), **{**defaults, **fields})


@functools.cache
def variables_of(model):
    return large_parameters(model, random_images(8, 8))


@functools.cache
def whole(model):
    """All that a model makes of two images, by one program."""
    return run_everything(model, variables_of(model), random_images(8, 8, batch=2))


@functools.cache
def jitted(model, method="__call__"):
    return jax.jit(functools.partial(model.apply, variables_of(model), method=method))


# Sizes.


def convolution(inputs, outputs, side=3):
    return side**2 * inputs * outputs + outputs


def count_parameters(multipliers, attention_levels, width=128, blocks=2, latent=256, code=256):
    """Parameters of encoder and decoder, by the description of Esser et al., appendix A."""

    def residual(inputs, outputs):
        convolutions = convolution(inputs, outputs) + convolution(outputs, outputs)
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + 2 * outputs + convolutions + shortcut

    def attention(channels):
        return 2 * channels + 4 * convolution(channels, channels, 1)

    widths = [width * multiplier for multiplier in multipliers]
    middle = 2 * residual(widths[-1], widths[-1]) + attention(widths[-1])

    encoder = convolution(3, width) + middle
    decoder = convolution(latent, widths[-1]) + middle
    for level in range(len(widths)):
        here, finer, coarser = (widths[min(max(level + i, 0), len(widths) - 1)] for i in (0, -1, 1))
        encoder += residual(finer if level else width, here) + (blocks - 1) * residual(here, here)
        decoder += residual(coarser, here) + blocks * residual(here, here)
        if level in attention_levels:
            encoder += blocks * attention(here)
            decoder += (blocks + 1) * attention(here)
        if level < len(widths) - 1:
            encoder += convolution(here, here)
        if level > 0:
            decoder += convolution(here, here)
    encoder += 2 * widths[-1] + convolution(widths[-1], latent) + convolution(latent, code, 1)
    decoder += 2 * width + convolution(code, latent, 1)
    return encoder, decoder


@pytest.mark.parametrize(
    ("f", "multipliers", "millions"), [(16, (1, 1, 2, 2, 4), 72.14), (8, (1, 1, 2, 2), 25.05)]
)
def test_the_published_models(f, multipliers, millions):
    # At f = 16 the defaults, which make the model with 1,024 codes that was released for ImageNet.
    fields = {} if f == 16 else {"multipliers": multipliers, "attention_factors": (f,)}
    model = VQGAN(VectorQuantizer(), **fields)
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    (reconstructions, tokens, _, _), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert reconstructions.shape == images.shape
    assert model.downsampling == f
    assert tokens.grid == model.grid(256, 256) == (256 // f, 256 // f)

    params = variables["params"]
    counts = {
        part: sum(math.prod(p.shape) for p in jax.tree.leaves(params[part])) for part in params
    }
    encoder, decoder = count_parameters(multipliers, {len(multipliers) - 1})
    assert counts == {
        "encoder": encoder,
        "decoder": decoder,
        "quantizer": 1024 * 256,
        "last_convolution": convolution(128, 3),
    }
    np.testing.assert_allclose(sum(counts.values()) / 1e6, millions, atol=0.005)


@pytest.mark.parametrize("factors", [(1,), (2,)])
def test_attention_is_at_the_levels_named(factors):
    params = jax.eval_shape(
        tiny(attention_factors=factors).init, jax.random.key(0), random_images(8, 8)
    )
    for network, blocks in (("encoder", 1), ("decoder", 2)):
        for level in (0, 1):
            stage = params["params"][network][f"stage_{level}"]
            expected = blocks if 2**level in factors else 0
            assert sum(name.startswith("attention") for name in stage) == expected


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_one_set_of_weights_takes_any_grid(size):
    if size == (8, 8):
        images, tokens = whole(tiny())["images"], whole(tiny())["tokens"]
    else:
        images, tokens, _, _ = jitted(tiny())(random_images(*size, batch=2))
    assert images.shape == (2, *size, 3) and np.all(np.isfinite(images))
    assert tokens.grid == tiny().grid(*size) == (size[0] // 2, size[1] // 2)
    assert len(np.unique(tokens.codes)) > 8


def test_a_resolution_that_does_not_fit_names_the_nearest():
    with pytest.raises(
        InputError, match=r"33 pixels .* with f=2: the nearest that works is 32 or 34"
    ):
        tiny().grid(32, 33)
    with pytest.raises(InputError, match=r"(?m)1 pixels .* is 2$"):
        jitted(tiny())(random_images(1, 8))


# Tokens.


def test_decoding_the_tokens_gives_the_reconstruction():
    assert_tokens_decode_to_the_reconstruction(whole(tiny()))


def test_every_pixel_depends_on_every_code():
    codes = np.random.default_rng(0).integers(0, 32, (2, 4, 4)).astype(np.int32)
    codes[1] = codes[0]
    codes[1, 0, 0] += 1 - 2 * (codes[0, 0, 0] > 0)
    one, other = jax.jit(lambda c: jitted(tiny(), "decode")(Tokens.dense(c)))(codes)
    assert np.all(np.any(one != other, axis=-1))


def test_tiles_are_refused():
    def decode(variables):
        tokens = Tokens.dense(jnp.zeros((1, 4, 4), jnp.int32))
        return tiny().apply(variables, tokens, 8, method="decode")

    with pytest.raises(InputError, match=r"tiles of 8 pixels: .*normalises over the whole image"):
        jax.eval_shape(decode, variables_of(tiny()))


# Training.


def test_every_parameter_learns():
    assert_every_parameter_learns(whole(tiny())["to_params"])


def test_the_last_layer_makes_the_pixels_of_the_features():
    """The contract of the adversarial loss's adaptive weight."""
    assert_last_layer(tiny(), variables_of(tiny()), whole(tiny()))


def test_bfloat16_keeps_parameters_pixels_and_losses_in_float32():
    (images, _, loss, _), variables = jax.eval_shape(
        tiny(multipliers=(1,), dtype="bfloat16", remat=True).init_with_output,
        jax.random.key(0),
        random_images(8, 8),
    )
    assert images.dtype == loss.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# Fields.


def test_tokenizer_of_a_config():
    config = {
        "name": "vqgan",
        "multipliers": [1, 2],
        "attention_factors": [2],
        "quantizer": {"num_codes": 16},
    }
    expected = VQGAN(VectorQuantizer(16), multipliers=(1, 2), attention_factors=(2,))
    assert build_tokenizer("tokenizer.model", config) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width=0: at least 1"),
        ({"num_res_blocks": 0}, "num_res_blocks=0: at least 1"),
        ({"latent_width": 0}, "latent_width=0: at least 1"),
        ({"multipliers": ()}, r"multipliers=\(\): at least one level"),
        ({"multipliers": (1, 0)}, "multipliers has 0: at least 1"),
        (
            {"attention_factors": (16,)},
            r"attention_factors=\(16,\): .* of levels \(1, 2\)",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused_at_once(fields, message):
    with pytest.raises(InputError, match=message) as error:
        tiny(**fields)
    assert "\n" not in str(error.value)
