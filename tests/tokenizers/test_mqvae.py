"""MQ-VAE: what is kept, what learns from it, what is filled in; and a VQGAN without a mask."""

import functools
import math

import flax.linen as nn
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

from vqjax.errors import FieldError, InputError
from vqjax.parallel import batch_sharding, make_mesh
from vqjax.quantizers import STATE, VectorQuantizer
from vqjax.tokenizers import build_tokenizer
from vqjax.tokenizers.base import same_codes, tokenizer_shapes
from vqjax.tokenizers.mqvae import MQVAE
from vqjax.tokenizers.vqgan import VQGAN
from vqjax.tokens import Tokens

SMALL = {
    "width": 6,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_factors": (),
    "latent_width": 16,
}
CELLS, KEPT = 16, 12


def tiny(**fields):
    """A grid of 4x4 for images of 8x8, of which twelve cells are kept."""
    defaults = {**SMALL, "demask_blocks": 2}
    return MQVAE(VectorQuantizer(32, 8), **{**defaults, **fields})


@functools.cache
def variables_of(model):
    return large_parameters(model, random_images(8, 8))


@functools.cache
def whole(model):
    return run_everything(model, variables_of(model), random_images(8, 8, batch=2))


@functools.cache
def jitted(model, method):
    return jax.jit(functools.partial(model.apply, variables_of(model), method=method))


def kept_of_latents(model, z):
    """What is kept of latents, in the place of those of an encoder."""

    def replace(call, args, kwargs, where):
        # The encoder itself; its parts are not called.
        return z if where.module.name == "encoder" else call(*args, **kwargs)

    images = jnp.zeros((len(z), 8, 8, 3))
    with nn.intercept_methods(replace):
        return model.apply(variables_of(model), images, False, method="_kept")[:2]


def latents(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, (2, 4, 4, 16)), jnp.float32)


# The mask.


def test_the_highest_scores_are_kept_in_raster_order():
    model = tiny()
    scores = np.asarray(jitted(model, "scores")(random_images(8, 8, batch=2))).reshape(2, CELLS)
    wanted = np.sort(np.argsort(-scores, axis=1)[:, :KEPT], axis=1)
    assert (wanted[0] != wanted[1]).any()
    np.testing.assert_array_equal(whole(model)["tokens"].positions, wanted)
    assert whole(model)["tokens"].grid == (4, 4)


def test_kept_vectors_are_normalised_latents_times_scores():
    """Eq. 2 and 3 in float64."""
    model, z = tiny(), latents()
    vectors, positions = kept_of_latents(model, z)
    params = jax.tree.map(np.float64, variables_of(model)["params"])
    flat = np.float64(z).reshape(2, CELLS, 16)
    up, down = params["scoring"]["up"], params["scoring"]["down"]
    hidden = np.maximum(flat @ up["kernel"] + up["bias"], 0)
    scores = 1 / (1 + np.exp(-(hidden @ down["kernel"] + down["bias"])))
    normalised = flat - flat.mean(-1, keepdims=True)
    normalised /= np.sqrt((normalised**2).mean(-1, keepdims=True) + 1e-5)
    wanted = (normalised * scores) @ params["to_code"]["kernel"]
    wanted = np.take_along_axis(wanted, np.asarray(positions)[..., None], axis=1)
    np.testing.assert_allclose(vectors, wanted, rtol=1e-3, atol=1e-4)


def test_masked_cells_move_nothing_that_is_kept():
    """Neither vectors nor scores; every kept cell moves its own vector alone."""
    model, z = tiny(), latents()
    _, positions = kept_of_latents(model, z)
    influence = jax.jacrev(lambda z: jnp.sum(kept_of_latents(model, z)[0] ** 2, -1))(z)
    reached = np.abs(influence).sum(-1).reshape(2, KEPT, 2, CELLS) > 0
    wanted = np.zeros_like(reached)
    for image, cells in enumerate(np.asarray(positions)):
        wanted[image, np.arange(KEPT), image, cells] = True
    np.testing.assert_array_equal(reached, wanted)


def test_random_masks_are_of_the_image_and_in_training_of_the_step():
    model = tiny(mask="random")
    images = random_images(8, 8, batch=4)
    images[3] = images[0]
    encode = jitted(model, "encode")
    positions = np.asarray(encode(images).positions)
    np.testing.assert_array_equal(positions[0], positions[3])
    assert len({tuple(row) for row in positions}) == 3
    np.testing.assert_array_equal(positions[::-1], encode(images[::-1].copy()).positions)
    assert "scoring" not in variables_of(model)["params"]

    @jax.jit
    def train(key, images):
        return model.apply(
            variables_of(model), images, True, rngs={"mask": key, "restart": key}, method="_kept"
        )[1]

    drawn = np.stack([train(jax.random.key(i), images) for i in range(50)])
    assert len({tuple(row) for row in drawn.reshape(-1, KEPT)}) > 100
    assert (np.diff(drawn, axis=-1) > 0).all()
    # Every cell is kept three times in four.
    share = np.bincount(drawn.ravel(), minlength=CELLS) / (drawn.size / KEPT)
    np.testing.assert_allclose(share, 0.75, atol=0.12)


def test_statistics_are_of_kept_vectors():
    quantizer = VectorQuantizer(32, 8, learning="ema", restart_below=0.0, decay=0.0)
    model = MQVAE(quantizer, **SMALL, demask="none")
    variables = large_parameters(model, random_images(8, 8))
    (_, tokens, _, _), after = model.apply(
        variables,
        jnp.asarray(random_images(8, 8, batch=2)),
        True,
        mutable=[STATE],
        rngs={"restart": jax.random.key(0)},
    )
    counted = after[STATE]["quantizer"]["code_count"]
    used = np.bincount(np.ravel(tokens.codes), minlength=32)
    assert used.sum() == 2 * KEPT
    np.testing.assert_allclose(np.asarray(counted)[used > 0], used[used > 0])


# What is filled in.


def test_tokens_decode_alike_in_any_order_and_with_absent_ones():
    model = tiny()
    tokens = jax.tree.map(jnp.asarray, whole(model)["tokens"])
    decode = jitted(model, "decode")
    order = np.random.default_rng(0).permutation(KEPT)
    shuffled = Tokens(tokens.codes[:, order], tokens.positions[:, order], (4, 4))
    np.testing.assert_allclose(decode(shuffled), decode(tokens), atol=1e-5)
    wider = ((0, 0), (0, 2))
    padded = Tokens(
        jnp.pad(tokens.codes, wider, constant_values=7),
        jnp.pad(tokens.positions, wider, constant_values=CELLS),
        (4, 4),
    )
    np.testing.assert_allclose(decode(padded), decode(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("demask", "wanted"),
    [
        ("self_attention", [None, None]),
        ("direction_constrained", [0.02, 0.02]),
        ("mask_updating", [0.02, math.sqrt(0.02)]),
    ],
)
def test_weights_of_masked_cells_in_each_block(demask, wanted):
    model, seen = tiny(demask=demask), []
    tokens = jax.tree.map(jnp.asarray, whole(tiny())["tokens"])
    masked = np.ones((2, CELLS), bool)
    np.put_along_axis(masked, tokens.positions, False, axis=1)

    def watch(call, args, kwargs, where):
        if "key_weights" in kwargs:
            seen.append(kwargs["key_weights"])
        return call(*args, **kwargs)

    variables = large_parameters(model, random_images(8, 8))
    with nn.intercept_methods(watch):
        model.apply(variables, tokens, method="decode")
    assert len(seen) == 2
    for weights, value in zip(seen, wanted, strict=True):
        if value is None:
            assert weights is None
        else:
            np.testing.assert_allclose(weights, np.where(masked, value, 1.0), rtol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"scorer": "conv"}, {"mask": "random", "demask": "none"}])
def test_every_parameter_learns_and_tokens_decode(fields):
    model = tiny(**fields)
    out = whole(model)
    assert_every_parameter_learns(out["to_params"])
    assert_tokens_decode_to_the_reconstruction(out)
    assert_last_layer(model, variables_of(model), out)
    assert out["tokens"].codes.shape == (2, KEPT)


def test_a_batch_that_is_split_over_devices_is_filled_in_where_it_is():
    model = tiny()
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    split = batch_sharding(mesh)
    tokens = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), whole(model)["tokens"]
    )
    decode = jitted(model, "decode").lower(tokens).compile()
    assert "all-gather" not in decode.as_text()


# Without a mask.


def test_without_a_mask_it_is_a_vqgan_to_the_bit():
    model, vqgan = tiny(mask="none", demask="none"), VQGAN(VectorQuantizer(32, 8), **SMALL)
    images = random_images(8, 8)
    fresh = [jax.jit(m.init)(jax.random.key(0), images) for m in (model, vqgan)]
    jax.tree.map(np.testing.assert_array_equal, *fresh)
    assert model.rngs == vqgan.rngs and model.decoder_parts == vqgan.decoder_parts
    ours, theirs = (
        run_everything(m, variables_of(model), random_images(8, 8, batch=2)) for m in (model, vqgan)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "sparse"),
        ({"mask_ratio": 0.0}, "dense"),
        ({"mask": "none", "demask": "self_attention"}, "dense"),
    ],
)
def test_tokens_of_every_cell_are_dense(fields, kind):
    model = tiny(**fields)
    assert model.token_kind == kind
    tokens = jax.eval_shape(
        functools.partial(model.apply, method="encode"), variables_of(model), random_images(8, 8)
    )
    assert tokens.codes.shape == (1, CELLS if kind == "dense" else KEPT)


# Sizes, and what does not fit.


@pytest.mark.parametrize(
    ("f", "multipliers", "millions"), [(16, (1, 1, 2, 2, 4), 112.62), (8, (1, 1, 2, 2), 35.23)]
)
def test_the_full_size_models(f, multipliers, millions):
    fields = {"name": "mqvae", "multipliers": multipliers, "attention_factors": (f,)}
    model = build_tokenizer("tokenizer.model", fields)
    params = tokenizer_shapes(model, 256)["params"]
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.num_tokens(model.grid(256, 256)) == {16: 192, 8: 768}[f]


def test_another_mask_makes_other_codes():
    assert same_codes(tiny(), tiny(demask="none"))
    for other in ({"mask": "random"}, {"mask_ratio": 0.5}, {"scorer": "conv"}):
        assert not same_codes(tiny(), tiny(**other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0: a number in"),
        ({"mask_ratio": -0.1}, "mask_ratio=-0.1: a number in"),
        ({"mask": "none"}, "demask='mask_updating': none .* where mask='none'"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(FieldError, match=message):
        tiny(**fields)


def test_a_mask_that_leaves_nothing():
    with pytest.raises(InputError, match=r"mask_ratio=0.9 keeps none of the 4 cells .* lower it"):
        tiny(mask_ratio=0.9).grid(4, 4)
