"""PatchGAN against its float64 oracle, in bfloat16 and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from discriminator_oracles import (
    assert_trees_close,
    build,
    float64,
    patchgan_oracle,
    random_images,
    random_variables,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vqjax.discriminators import build_discriminator
from vqjax.errors import InputError


@functools.cache
def patchgan():
    model = build({"name": "patchgan", "width": 8})
    return model, random_variables(model, random_images(0, 1, 32, 32, 3))


@functools.cache
def patchgan_step(train, dtype="float32"):
    """The jitted model: logits and state; of (3, 32, 48, 3) wherever the size does not matter."""
    model = patchgan()[0].clone(dtype=dtype)
    return jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]))


@pytest.mark.parametrize("train", [False, True])
def test_patchgan_equals_the_float64_oracle(train):
    _, variables = patchgan()
    # Not square, and with 3 positions a map smaller than its kernel.
    images = random_images(1, 3, 32, 48, 3)
    logits, state = patchgan_step(train)(variables, images)
    expected, averages = patchgan_oracle(float64(variables), float64(images), train)
    assert logits.shape == (3, 2 * 4) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert_trees_close(state["batch_stats"], averages, rtol=1e-4, atol=1e-6)


def test_patchgan_starts_as_pix2pix_with_fresh_averages():
    model = build_discriminator(
        "tokenizer.discriminator.model", {"name": "patchgan", "num_layers": 1}
    )
    init = jax.jit(functools.partial(model.init, train=True))
    variables = init(jax.random.key(0), random_images(0, 2, 8, 8, 3))
    kernel, scale = (variables["params"][f"{name}1"] for name in ("conv", "norm"))
    assert kernel["kernel"].shape == (4, 4, 64, 128)
    np.testing.assert_allclose(kernel["kernel"].std(), 0.02, rtol=0.02)
    np.testing.assert_allclose(scale["scale"].mean(), 1, atol=0.01)
    np.testing.assert_allclose(scale["scale"].std(), 0.02, rtol=0.3)
    np.testing.assert_array_equal(variables["batch_stats"]["norm1"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["norm1"]["var"], 1)
    assert model.frozen == () and model.frozen_params(jax.random.key(0)) == {}


def test_patchgan_refuses_images_without_a_single_patch():
    model, variables = patchgan()
    apply = functools.partial(model.apply, train=False)
    assert jax.eval_shape(apply, variables, random_images(2, 1, 24, 24, 3)).shape == (1, 1)
    with pytest.raises(InputError, match=r"^num_layers=3: images of at least 24x24 .* 23x40"):
        apply(variables, random_images(2, 1, 23, 40, 3))


def test_sharded_batch_is_normalised_as_a_whole():
    model = build_discriminator(
        "tokenizer.discriminator.model", {"name": "patchgan", "num_layers": 1, "width": 4}
    )
    # Images of very different contrast, so that statistics of a part would be far off.
    images = random_images(3, 8, 8, 8, 3) * jnp.linspace(0.01, 1, 8)[:, None, None, None]
    variables = random_variables(model, images)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))

    def step(params, stats, images):
        def logits_of(params):
            return model.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable="batch_stats"
            )

        logits, pullback, state = jax.vjp(logits_of, params, has_aux=True)
        return logits, pullback(jnp.sign(logits))[0], state

    step = jax.jit(step)
    whole = step(variables["params"], variables["batch_stats"], images)
    parts = step(variables["params"], variables["batch_stats"], sharded)
    assert len(parts[0].sharding.device_set) == 8
    assert_trees_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_bfloat16_gives_nearly_the_same_float32_logits():
    _, variables = patchgan()
    images = random_images(4, 3, 32, 48, 3)
    (exact, _), (rounded, state) = (
        patchgan_step(True, dtype)(variables, images) for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert rounded.dtype == jnp.float32 and not np.array_equal(rounded, exact)
    assert np.corrcoef(rounded.ravel(), exact.ravel())[0, 1] > 0.99


def test_training_uses_the_batch_and_moves_the_averages_and_nothing_else_does():
    _, variables = patchgan()
    images = random_images(8, 3, 32, 48, 3)
    logits, state = patchgan_step(True)(variables, images)
    others = jax.tree.map(lambda average: 3 * average + 1, variables["batch_stats"])
    same, _ = patchgan_step(True)({**variables, "batch_stats": others}, images)
    np.testing.assert_array_equal(same, logits)
    averaged, unchanged = patchgan_step(False)(variables, images)
    assert not np.allclose(averaged, logits, atol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], variables["batch_stats"])
    for before, after in zip(*map(jax.tree.leaves, (variables["batch_stats"], state)), strict=True):
        assert not np.allclose(before, after, rtol=1e-3)
