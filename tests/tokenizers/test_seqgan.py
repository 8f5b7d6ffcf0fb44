"""SeQ-GAN: an oracle, published sizes, and a phase 2 that begins where phase 1 ends."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutional_oracle import convolution, group_norm, swish
from jax.ad_checkpoint import print_saved_residuals
from tiny_tokenizer import (
    assert_every_parameter_learns,
    assert_last_layer,
    assert_tokens_decode_to_the_reconstruction,
    large_parameters,
    random_images,
    run_everything,
)
from traced import products

from vqjax.errors import InputError
from vqjax.nn.regional import RegionalAttention
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers import build_tokenizer
from vqjax.tokenizers.base import same_codes
from vqjax.tokenizers.seqgan import SeQGAN
from vqjax.tokens import Tokens

ENHANCED = ("attention", "attention_x2", "convolution_x2")


def tiny(enhancement="none", **fields):
    """One downsampling, several regions at each level, normalised in groups of three channels."""
    defaults = {
        "width": 6,
        "multipliers": (1, 2),
        "num_res_blocks": 1,
        "regions": (4, 2),
        "head_dim": 3,
    }
    return SeQGAN(VectorQuantizer(32, 8), enhancement=enhancement, **{**defaults, **fields})


@functools.cache
def variables_of(model):
    return large_parameters(model, random_images(8, 8))


@functools.cache
def whole(model):
    """All that a model makes of two images, by one program."""
    return run_everything(model, variables_of(model), random_images(8, 8, batch=2))


@functools.cache
def jitted(model, method="__call__"):
    return jax.jit(functools.partial(model.apply, method=method))


# Sizes.


def shapes_of(model, side):
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def count(params):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("enhancement", "ours", "published"),
    [
        ("none", 54.52, 54.5),
        ("attention", 57.94, 57.9),
        ("attention_x2", 61.36, 61.4),
        ("convolution_x2", 69.86, 70.0),
    ],
)
def test_the_published_models(enhancement, ours, published):
    model = SeQGAN(VectorQuantizer(), enhancement=enhancement)
    (reconstructions, tokens, _, _), variables = shapes_of(model, 256)
    assert reconstructions.shape == (2, 256, 256, 3)
    assert tokens.grid == model.grid(256, 256) == (16, 16)
    np.testing.assert_allclose(count(variables["params"]) / 1e6, published, rtol=0.01)
    # As the class says.
    np.testing.assert_allclose(count(variables["params"]) / 1e6, ours, atol=0.005)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_one_set_of_weights_takes_any_grid(size):
    model = tiny()
    images, tokens, _, _ = jitted(model)(variables_of(model), random_images(*size, batch=2))
    assert images.shape == (2, *size, 3) and np.all(np.isfinite(images))
    assert tokens.grid == model.grid(*size) == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("enhancement", ["none", "convolution_x2"])
def test_without_attention_a_side_has_to_be_divided_by_f_alone(enhancement):
    model = tiny(enhancement, regions=(5,), head_dim=5)
    assert [side for side in range(9) if model.fits(side)] == [2, 4, 6, 8]
    with pytest.raises(InputError, match=r"33 pixels .* with f=2: the nearest .* is 32 or 34$"):
        model.grid(32, 33)


def test_with_attention_regions_divide_the_map_of_every_level():
    model = tiny("attention", regions=(2, 3))
    assert [side for side in range(20) if model.fits(side)] == [6, 12, 18]
    message = r"(?m)8 pixels .* with f=2 and regions=\(2, 3\): the nearest that works is 6 or 12$"
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), random_images(6, 8))
    shapes_of(model, 12)
    # The published regions, on other maps than those of 256 pixels.
    published = SeQGAN(VectorQuantizer(), enhancement="attention_x2")
    assert published.fits(64) and published.fits(512) and not published.fits(32)


# What it computes.


def normalized(x, params):
    return swish(group_norm(x, params, math.gcd(32, x.shape[-1])))


def residual_by_hand(x, params):
    h = convolution(normalized(x, params["norm_1"]), params["conv_1"])
    h = convolution(normalized(h, params["norm_2"]), params["conv_2"])
    return h + (convolution(h, params["shortcut"], 0, 0) if "shortcut" in params else x)


def stage_by_hand(x, params):
    for name in sorted(params):
        x = residual_by_hand(x, params[name])
    return x


def attention_by_hand(x, params, region, dilated):
    """By ours, which has an oracle of its own."""
    layer = jax.jit(RegionalAttention(region, dilated, x.shape[-1] // 3).apply)
    single = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    return np.float64(layer({"params": single}, jnp.asarray(x, jnp.float32)))


def test_the_model_by_hand():
    model = tiny("attention")
    out, params = whole(model), jax.tree.map(np.float64, variables_of(model)["params"])
    images, encoder, decoder = random_images(8, 8, batch=2), params["encoder"], params["decoder"]
    x = stage_by_hand(convolution(images, encoder["from_pixels"]), encoder["stage_0"])
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    x = stage_by_hand(stage_by_hand(x, encoder["stage_1"]), encoder["middle"])
    z = convolution(normalized(x, encoder["norm"]), encoder["to_code"], 0, 0)
    codebook = params["quantizer"]["codebook"]
    codes = np.argmin(((z[..., None, :] - codebook) ** 2).sum(-1), -1)
    np.testing.assert_array_equal(out["tokens"].codes.reshape(codes.shape), codes)

    x = stage_by_hand(convolution(codebook[codes], decoder["from_code"]), decoder["middle"])
    for level, region in ((1, 2), (0, 4)):
        x = stage_by_hand(x, decoder[f"stage_{level}"])
        x = attention_by_hand(x, decoder[f"regional_{level}_0"], region, False)
        x = attention_by_hand(x, decoder[f"dilated_{level}_0"], region, True)
        if level == 1:
            x = convolution(x.repeat(2, 1).repeat(2, 2), decoder["upsampling_1"]["conv"])
    features = normalized(x, decoder["norm"])
    np.testing.assert_allclose(out["features"], features, rtol=1e-3, atol=1e-4)


def test_decoding_the_tokens_gives_the_reconstruction():
    assert_tokens_decode_to_the_reconstruction(whole(tiny("attention")))


def test_every_pixel_depends_on_every_code():
    codes = np.random.default_rng(0).integers(0, 32, (2, 4, 4)).astype(np.int32)
    codes[1] = codes[0]
    codes[1, 0, 0] += 1 - 2 * (codes[0, 0, 0] > 0)
    one, other = jitted(tiny(), "decode")(variables_of(tiny()), Tokens.dense(jnp.asarray(codes)))
    assert np.all(np.any(one != other, axis=-1))


def test_tiles_are_refused():
    def decode(variables):
        tokens = Tokens.dense(jnp.zeros((1, 4, 4), jnp.int32))
        return tiny().apply(variables, tokens, 8, method="decode")

    with pytest.raises(InputError, match=r"tiles of 8 pixels: .*normalises over the whole image"):
        jax.eval_shape(decode, variables_of(tiny()))


# Phase 2.


def paths(params):
    return {jax.tree_util.keystr(path): p.shape for path, p in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize("enhancement", ENHANCED)
def test_every_decoder_has_the_parameters_of_phase_1(enhancement):
    base, enhanced = (paths(shapes_of(tiny(e), 8)[1]["params"]) for e in ("none", enhancement))
    assert base.items() <= enhanced.items()
    assert all(path.startswith("['decoder']") for path in enhanced.keys() - base.keys())
    # A width each: two levels, a regional and a dilated one, once or twice; or two blocks more.
    layers = {path.split("']['")[1] for path in enhanced.keys() - base.keys()}
    expected = {"attention": 4, "attention_x2": 8, "convolution_x2": 2}
    assert len(layers) == expected[enhancement]
    assert same_codes(tiny(), tiny(enhancement))


@pytest.mark.parametrize("enhancement", ["attention", "attention_x2"])
def test_phase_2_first_decodes_as_phase_1(enhancement):
    base, enhanced, images = tiny(), tiny(enhancement), random_images(8, 8, batch=2)
    trained = variables_of(base)["params"]

    @jax.jit
    def reconstruct(trained, images):
        params = enhanced.init(jax.random.key(0), images)["params"]
        decoder = {**params["decoder"], **trained["decoder"]}
        changed = {"params": {**trained, "decoder": decoder}}
        return enhanced.apply(changed, images)[0]

    expected = jitted(base)({"params": trained}, images)[0]
    np.testing.assert_allclose(reconstruct(trained, images), expected, atol=1e-6)


@pytest.mark.parametrize("enhancement", ("none", *ENHANCED))
def test_a_decoder_reads_its_parts_and_the_codebook_alone(enhancement):
    model = tiny(enhancement)
    _, variables = shapes_of(model, 8)

    def only(*names):
        return {"params": {name: variables["params"][name] for name in names}}

    def run(variables, method, argument):
        return jax.eval_shape(lambda v: model.apply(v, argument, method=method), variables)

    tokens = run(only("encoder", "quantizer"), "encode", jnp.zeros((1, 8, 8, 3)))
    codes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tokens)
    run(only(*model.decoder_parts, "quantizer"), "decode", codes)
    assert {"encoder", "quantizer", *model.decoder_parts} == set(variables["params"])


# Training.


def test_every_parameter_learns():
    assert_every_parameter_learns(whole(tiny("attention"))["to_params"])


def test_the_last_layer_makes_the_pixels_of_the_features():
    """The contract of the adversarial loss's adaptive weight."""
    model = tiny("attention")
    assert_last_layer(model, variables_of(model), whole(model))


def decoder_of(**fields):
    """A decoder alone, of one level."""
    model = tiny(multipliers=(1,), regions=(2,), **fields)
    return model.bind({}).decoder.clone(parent=None, name=None)


def test_recomputation_changes_nothing():
    z_q = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 8)), jnp.float32)

    def gradient(remat):
        decoder = decoder_of(enhancement="attention", remat=remat)
        variables = large_parameters(decoder, z_q)
        return jax.jit(jax.grad(lambda v: jnp.sum(decoder.apply(v, z_q) ** 2)))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradient(False),
        gradient(True),
    )


def test_a_backward_pass_keeps_convolutions_and_no_norms_or_swishes(capsys):
    decoder, z_q = decoder_of(), jnp.zeros((2, 4, 4, 8))
    variables = decoder.init(jax.random.key(0), z_q)
    print_saved_residuals(lambda v, z: jnp.sum(decoder.apply(v, z)), variables, z_q)
    maps = [line for line in capsys.readouterr().out.splitlines() if "[2,4,4,6]" in line]
    # The first convolution's output, and of two blocks that of a convolution and their own.
    assert len(maps) == 1 + 2 * 2


def test_bfloat16_keeps_parameters_pixels_and_losses_in_float32():
    fields = {"enhancement": "attention", "dtype": "bfloat16", "remat": True}
    (images, _, loss, _), variables = shapes_of(tiny(**fields), 8)
    assert images.dtype == loss.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    z_q = jax.ShapeDtypeStruct((1, 8, 8, 8), jnp.float32)
    program = jax.make_jaxpr(decoder_of(**fields).init_with_output)(jax.random.key(0), z_q)
    found = products(program.jaxpr)
    assert found and {e.invars[0].aval.dtype for e in found} == {jnp.dtype("bfloat16")}


# Fields.


def test_tokenizer_of_a_config():
    config = {
        "name": "seqgan",
        "multipliers": [1, 2],
        "enhancement": "attention",
        "regions": [4, 2],
        "quantizer": {"num_codes": 16},
    }
    expected = SeQGAN(
        VectorQuantizer(16), multipliers=(1, 2), enhancement="attention", regions=(4, 2)
    )
    assert build_tokenizer("tokenizer.model", config) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multipliers": ()}, r"multipliers=\(\): at least one level"),
        ({"multipliers": (1, 0)}, "multipliers has 0: at least 1"),
        ({"regions": (4,)}, r"regions=\(4,\): one region for each of 2 levels"),
        ({"head_dim": 4}, r"head_dim=4: a divisor of the widths \(6, 12\)"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_at_once(fields, message):
    with pytest.raises(InputError, match=message) as error:
        tiny(**{"enhancement": "attention", **fields})
    assert "\n" not in str(error.value)
