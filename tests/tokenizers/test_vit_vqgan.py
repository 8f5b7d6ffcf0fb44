"""ViT-VQGAN: an oracle around its transformers, published sizes, every pixel from all codes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from tiny_tokenizer import (
    assert_every_parameter_learns,
    assert_tokens_decode_to_the_reconstruction,
    large_parameters,
    random_images,
    run_everything,
)

from vqjax.errors import InputError
from vqjax.nn.transformer import Transformer
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers import build_tokenizer
from vqjax.tokenizers.vit_vqgan import ViTVQGAN, from_patches, to_patches
from vqjax.tokens import Tokens

SMALL = {
    "patch_size": 2,
    "dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "grid_side": 4,
}


def vit(**fields):
    """Patches of 2x2 pixels, tables for 4x4 of them, codes on the unit sphere."""
    return ViTVQGAN(VectorQuantizer(32, 8, latent_norm="l2"), **{**SMALL, **fields})


@functools.cache
def variables_of(model):
    return large_parameters(model, random_images(8, 8))


@functools.cache
def whole(model):
    """All that a model makes of two images, by one program."""
    return run_everything(model, variables_of(model), random_images(8, 8, batch=2))


# Patches.


def patches_by_hand(images, side):
    b, height, width, c = images.shape
    patches = np.zeros((b, height // side, width // side, side * side * c))
    for y, x, channel in np.ndindex(height, width, c):
        place = ((y % side) * side + x % side) * c + channel
        patches[:, y // side, x // side, place] = images[:, y, x, channel]
    return patches


@pytest.mark.parametrize("side", [1, 2, 4])
def test_patches_are_cut_and_put_together(side):
    images = jnp.asarray(random_images(8, 12, batch=2))
    patches = to_patches(images, side)
    np.testing.assert_array_equal(patches, patches_by_hand(images, side).astype(np.float32))
    np.testing.assert_array_equal(from_patches(patches, side), images)


# The model.


def linear(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def trunk_by_hand(x, params):
    """The transformer is ours, which has an oracle of its own."""
    b, h, w, d = x.shape
    row, column = (np.asarray(params["position"][name], np.float64) for name in ("row", "column"))
    x = x + row[None, :, None] + column[None, None]
    transform = jax.jit(Transformer(2, 2, mlp_ratio=2).apply)
    sequence = x.reshape(b, h * w, d).astype(np.float32)
    x = np.asarray(transform({"params": params["transformer"]}, sequence), np.float64)
    return np.tanh(linear(x.reshape(b, h, w, d), params["head"]))


def test_the_model_by_hand():
    params, out = variables_of(vit())["params"], whole(vit())
    images = random_images(8, 8, batch=2)
    x = linear(patches_by_hand(images, 2), params["encoder"]["patch_embedding"])
    z = linear(trunk_by_hand(x, params["encoder"]["trunk"]), params["encoder"]["to_latent"])
    codebook = np.asarray(params["quantizer"]["codebook"], np.float64)
    codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    codes = np.argmax(z @ codebook.T, axis=-1)
    np.testing.assert_array_equal(out["tokens"].codes.reshape(codes.shape), codes)

    x = linear(codebook[codes], params["decoder"]["from_latent"])
    features = trunk_by_hand(x, params["decoder"]["trunk"])
    np.testing.assert_allclose(out["features"], features, atol=1e-4)
    patches = linear(features, params["last_linear"])
    np.testing.assert_allclose(patches_by_hand(out["images"], 2), patches, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out["to_pixels"], out["images"], atol=1e-4)


def test_decoding_the_tokens_gives_the_reconstruction():
    assert_tokens_decode_to_the_reconstruction(whole(vit()))


def test_every_pixel_depends_on_every_code_and_every_latent_on_every_pixel():
    model, variables = vit(), variables_of(vit())

    def decode(z_q):
        return model.apply(variables, z_q, method=lambda m, z: m.to_pixels(m.decoder(z)))

    def encode(images):
        return model.apply(variables, images, method=lambda m, x: m.encoder(x))

    images = random_images(4, 6)
    z_q = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    to_codes, to_pixels = jax.jit(lambda z, x: (jax.jacrev(decode)(z), jax.jacrev(encode)(x)))(
        z_q, images
    )
    # Axes: of what is made, b h w c, then of what it is made from; any channel counts.
    assert np.all(np.any(to_codes != 0, axis=(0, 3, 4, 7)))
    assert np.all(np.any(to_pixels != 0, axis=(0, 3, 4, 7)))


def test_tiles_are_refused():
    def decode(variables):
        tokens = Tokens.dense(jnp.zeros((1, 4, 4), jnp.int32))
        return vit().apply(variables, tokens, 8, method="decode")

    with pytest.raises(InputError, match=r"tiles of 8 pixels: .*attends to the whole image"):
        jax.eval_shape(decode, variables_of(vit()))


# Other grids.


def interpolated(table, size):
    centres = (np.arange(size) + 0.5) * len(table) / size - 0.5
    columns = np.asarray(table, np.float64).T
    return np.stack([np.interp(centres, np.arange(len(table)), c) for c in columns], -1)


def test_on_another_grid_it_is_the_model_of_that_grid_with_interpolated_tables():
    variables, images = variables_of(vit()), random_images(10, 10)

    def stretch(path, p):
        return interpolated(p, 5).astype(np.float32) if path[-2].key == "position" else p

    stretched = jax.tree_util.tree_map_with_path(stretch, variables)
    ours, tokens, *_ = jax.jit(vit().apply)(variables, images)
    theirs, *_ = jax.jit(vit(grid_side=5).apply)(stretched, images)
    assert tokens.grid == vit().grid(10, 10) == (5, 5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert np.abs(ours - jax.jit(vit().apply)(variables, images[:, :8, :8])[0].mean()).max() > 0.1


def test_a_resolution_that_does_not_fit_names_the_nearest():
    with pytest.raises(InputError, match=r"33 pixels .* with f=2: the nearest that works is 32"):
        vit().grid(32, 33)


# Training.


def test_every_parameter_learns():
    assert_every_parameter_learns(whole(vit())["to_params"])


def test_a_decoder_stage_trains_what_decoding_alone_reads():
    def parts(method, argument):
        init = functools.partial(vit().init, method=method)
        return set(jax.eval_shape(init, jax.random.key(0), argument)["params"])

    decoding = parts("decode", Tokens.dense(jnp.zeros((1, 4, 4), jnp.int32)))
    encoding = parts("encode", random_images(8, 8))
    assert decoding - encoding == set(vit().decoder_parts)
    assert decoding | encoding == set(variables_of(vit())["params"])


def config_of_a_run():
    config = tiny.get_config()
    quantizer = config.tokenizer.model.quantizer.to_dict() | {"latent_norm": "l2"}
    model = {"name": "vit_vqgan", **SMALL, "patch_size": 4, "quantizer": quantizer}
    config.tokenizer.model = ConfigDict(model)
    return config


def test_the_adaptive_weight_reads_the_gradient_at_the_last_layer(tmp_path):
    stage = tiny.make_stage(config_of_a_run(), "tokenizer", tmp_path)
    stage.model, out = vit(), whole(vit())
    params = variables_of(vit())["params"]
    # Of the sum of squares, as `whole` has it; the quantizer's loss is not of the last layer.
    gradient = jax.jit(stage._last_layer_gradient)(params, out["features"], 2 * out["images"])
    np.testing.assert_allclose(gradient, out["to_params"]["last_linear"]["kernel"], rtol=1e-3)


def test_a_training_step_with_an_adversary(tmp_path):
    stage = tiny.make_stage(config_of_a_run(), "tokenizer", tmp_path)
    batch = tiny.as_batch(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, np.int32))
    state = jax.eval_shape(stage.init, jax.random.key(0))
    step = functools.partial(stage.train_step, phase=1)
    after, metrics = jax.eval_shape(step, state, stage.frozen_shapes(), batch, stage.training_key)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    assert metrics["adaptive_weight"].shape == ()


def test_bfloat16_keeps_parameters_pixels_and_losses_in_float32():
    model = vit(dtype="bfloat16", remat=True)
    types = set()

    def watch(call, args, kwargs, where):
        out = call(*args, **kwargs)
        if isinstance(where.module, Transformer) and where.method_name == "__call__":
            types.add(out.dtype)
        return out

    with nn.intercept_methods(watch):
        (images, _, loss, _), variables = jax.eval_shape(
            model.init_with_output, jax.random.key(0), random_images(8, 8)
        )
    assert types == {jnp.dtype("bfloat16")}
    assert images.dtype == loss.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# Sizes.


@pytest.mark.parametrize(
    ("dim", "layers", "heads", "millions"),
    [(512, 8, 8, 53.4), (768, 12, 12, 176.1), (1280, 32, 16, 1274.3)],
)
def test_the_published_models(dim, layers, heads, millions):
    fields = {} if dim == 768 else {"dim": dim, "num_layers": layers, "num_heads": heads}
    model = ViTVQGAN(VectorQuantizer(8192, 32, latent_norm="l2"), **fields)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    (reconstructions, tokens, _, _), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert reconstructions.shape == images.shape
    assert tokens.grid == model.grid(256, 256) == (32, 32)

    def dense(inputs, outputs):
        return inputs * outputs + outputs

    block = 4 * dense(dim, dim) + dense(dim, 4 * dim) + dense(4 * dim, dim) + 2 * 2 * dim
    trunk = 2 * 32 * dim + layers * block + 2 * dim + dense(dim, 4 * dim)
    expected = {
        "encoder": dense(192, dim) + trunk + dense(4 * dim, 32),
        "quantizer": 8192 * 32,
        "decoder": dense(32, dim) + trunk,
        "last_linear": dense(4 * dim, 192),
    }
    counts = {
        part: sum(math.prod(p.shape) for p in jax.tree.leaves(params))
        for part, params in variables["params"].items()
    }
    assert counts == expected
    np.testing.assert_allclose(sum(counts.values()) / 1e6, millions, atol=0.05)


# Fields.


def test_tokenizer_of_a_config():
    config = {"name": "vit_vqgan", "dim": 24, "num_heads": 3, "quantizer": {"num_codes": 16}}
    expected = ViTVQGAN(VectorQuantizer(16), dim=24, num_heads=3)
    assert build_tokenizer("tokenizer.model", config) == expected
    with pytest.raises(InputError, match=r"tokenizer\.model\.dtype='bfloat': .*bfloat16"):
        build_tokenizer("tokenizer.model", config | {"dtype": "bfloat"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "patch_size=0: at least 1"),
        ({"dim": 0}, "dim=0: at least 1"),
        ({"num_layers": 0}, "num_layers=0: at least 1"),
        ({"num_heads": 3}, "num_heads=3: a divisor of dim=8"),
        ({"grid_side": 0}, "grid_side=0: at least 1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_at_once(fields, message):
    with pytest.raises(InputError, match=message) as error:
        vit(**fields)
    assert "\n" not in str(error.value)
