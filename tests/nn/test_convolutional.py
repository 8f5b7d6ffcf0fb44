"""Convolutional blocks against float64 oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from convolutional_oracle import convolution, group_norm, swish
from jax.ad_checkpoint import print_saved_residuals

from vqjax.nn.convolutional import (
    Downsampling,
    MaskGITResidualBlock,
    Normalization,
    ResidualBlock,
    ResidualStage,
    SpatialAttention,
    Upsampling,
)


def random_map(height, width, channels, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (2, height, width, channels))


@functools.cache
def applied(block, shape):
    """A block's output with random parameters, and these, in float64."""
    x = random_map(*shape)
    shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.asarray(x, jnp.float32))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape), shapes)
    single = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), variables)
    y = jax.jit(block.apply)(single, jnp.asarray(x, jnp.float32))
    return x, np.asarray(y), variables["params"]


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (16, 16), (6, 2), (5, 1)])
def test_groups_of_each_width(channels, groups):
    x, y, params = applied(Normalization(), (3, 5, channels))
    np.testing.assert_allclose(y, group_norm(x, params, groups), atol=1e-5)


@pytest.mark.parametrize("features", [64, 48])
def test_residual_block(features):
    x, y, params = applied(ResidualBlock(features), (4, 6, 64))
    h = convolution(swish(group_norm(x, params["norm_1"], 32)), params["conv_1"])
    groups = {64: 32, 48: 16}[features]
    h = convolution(swish(group_norm(h, params["norm_2"], groups)), params["conv_2"])
    # Only a change of the width needs a convolution around the block.
    assert ("shortcut" in params) == (features != 64)
    skip = convolution(x, params["shortcut"], 0, 0) if features != 64 else x
    np.testing.assert_allclose(y, skip + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", [64, 48])
def test_maskgit_s_residual_block(features):
    x, y, params = applied(MaskGITResidualBlock(features), (4, 6, 64))
    h = convolution(swish(group_norm(x, params["norm_1"], 32)), params["conv_1"])
    groups = {64: 32, 48: 16}[features]
    h = convolution(swish(group_norm(h, params["norm_2"], groups)), params["conv_2"])
    assert not any("bias" in params[name] for name in params if not name.startswith("norm"))
    # Of the block's output, not of its input.
    skip = convolution(h, params["shortcut"], 0, 0) if features != 64 else x
    np.testing.assert_allclose(y, skip + h, rtol=1e-4, atol=1e-4)


def test_attention_is_one_head_over_the_whole_map():
    x, y, params = applied(SpatialAttention(), (4, 6, 64))
    h = group_norm(x, params["norm"], 32).reshape(2, 24, 64)
    attention = params["attention"]
    qkv = np.einsum("bnc,ctd->tbnd", h, attention["qkv"]["kernel"][:, :, 0])
    q, k, v = qkv + attention["qkv"]["bias"][:, 0][:, None, None]
    weights = scipy.special.softmax(q @ k.swapaxes(1, 2) / np.sqrt(64), axis=-1)
    h = weights @ v @ attention["out"]["kernel"][0] + attention["out"]["bias"]
    np.testing.assert_allclose(y, x + h.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_a_stage_has_attention_after_each_block_or_none():
    def names(stage):
        variables = jax.eval_shape(stage.init, jax.random.key(0), jnp.ones((1, 4, 4, 8)))
        return variables["params"].keys()

    residual, attention = {"residual_0", "residual_1"}, {"attention_0", "attention_1"}
    assert names(ResidualStage(2, 8, True)) == residual | attention
    assert names(ResidualStage(2, 8)) == residual


def test_a_stage_is_of_the_blocks_that_it_is_told():
    _, y, params = applied(ResidualStage(1, 8, block=MaskGITResidualBlock), (4, 4, 8))
    assert set(params["residual_0"]["conv_1"]) == {"kernel"}
    block = jax.jit(MaskGITResidualBlock(8).apply)
    x = random_map(4, 4, 8).astype(np.float32)
    same = {"params": jax.tree.map(np.float32, params["residual_0"])}
    np.testing.assert_allclose(y, block(same, x), atol=1e-5)


def test_recomputation_changes_nothing():
    plain, again = (applied(ResidualStage(1, 8, True, remat), (4, 4, 8)) for remat in (False, True))
    np.testing.assert_allclose(plain[1], again[1], atol=1e-5)
    assert jax.tree.structure(plain[2]) == jax.tree.structure(again[2])


def test_a_backward_pass_keeps_the_outputs_of_blocks_and_of_their_first_convolutions(capsys):
    stage, x = ResidualStage(3, 8), jnp.zeros((2, 6, 5, 8))
    variables = stage.init(jax.random.key(0), x)
    print_saved_residuals(lambda v, x: jnp.sum(stage.apply(v, x)), variables, x)
    maps = [line for line in capsys.readouterr().out.splitlines() if "[2,6,5,8]" in line]
    assert len(maps) == 3 + 3  # the input instead of the last block's output


def test_downsampling_pads_below_and_to_the_right():
    x, y, params = applied(Downsampling(), (4, 6, 5))
    assert y.shape == (2, 2, 3, 5)
    np.testing.assert_allclose(y, convolution(x, params["conv"], 0, 1, stride=2), atol=1e-4)


def test_upsampling_repeats_each_cell():
    x, y, params = applied(Upsampling(), (2, 3, 5))
    assert y.shape == (2, 4, 6, 5)
    doubled = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(y, convolution(doubled, params["conv"]), atol=1e-4)
