"""The projected discriminator against its float64 oracle; its frozen parameters."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from discriminator_oracles import (
    assert_trees_close,
    build,
    convolve,
    float64,
    interpolate,
    projected_oracle,
    random_images,
    random_variables,
)
from traced import all_equations

from configs import ffhq_effvqgan
from vqjax.discriminators import projected
from vqjax.features import efficientnet_lite
from vqjax.losses.adversarial import generator_loss


@pytest.fixture(autouse=True, scope="module")
def _weights_are_read_once():
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(projected.load_efficientnet_lite)
        patch.setattr(projected, "load_efficientnet_lite", load)
        yield


MODEL = build({"name": "projected"})
DEEPENING = build({"name": "projected", "head_depth": "by_size"})


@functools.cache
def frozen(seed):
    return MODEL.frozen_params(jax.random.key(seed))


def shallow():
    """One block a stage in the backbone, which compiles in half the time."""
    return mock.patch.dict(efficientnet_lite._DEPTHS, lite0=(1,) * 7)


def projected_step(model, size, images):
    """Variables with the frozen parameters, and one jitted step, enlarging to `size` pixels."""
    weights = frozen(0)
    backbone = shallow() if size < 224 else contextlib.nullcontext()
    with backbone, mock.patch.object(projected, "_SIZE", size):
        variables = random_variables(model, images)
        variables["params"].update(weights)

        def total(images, variables):
            logits, state = model.apply(
                variables,
                images,
                train=True,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=lambda module, _: module.name == "backbone",
            )
            (features,) = state["intermediates"]["backbone"]["__call__"]
            return jnp.sum(logits * jnp.sign(logits)), (logits, state["batch_stats"], features)

        return variables, jax.jit(jax.grad(total, has_aux=True))(images, variables)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
def test_projected_equals_the_float64_oracle_and_sees_every_pixel(size):
    # Heads of a fixed depth have no room in maps of 64 pixels, which are there to be quick.
    model = DEEPENING if size == 64 else MODEL
    variables, results = projected_step(model, size, random_images(7, 2, 32, 32, 3))
    gradient, (logits, averages, features) = results
    ordered = [float64(features[f"stride{stride}"]) for stride in (4, 8, 16, 32)]
    for stride, channels, feature in zip((4, 8, 16, 32), (24, 40, 112, 320), ordered, strict=True):
        assert feature.shape == (2, size // stride, size // stride, channels)
    expected, expected_averages = projected_oracle(float64(variables), ordered)
    number = {64: 3 * 25 + 1, 224: 4 * 16}[size]
    assert logits.shape == (2, number) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert_trees_close(averages, expected_averages, rtol=1e-3, atol=1e-4)
    # Through the frozen backbone.
    assert jnp.isfinite(gradient).all() and (jnp.abs(gradient) > 0).mean() > 0.99


def test_projected_sees_small_images_enlarged_to_224_bilinearly():
    images = random_images(7, 2, 32, 32, 3)
    shapes = jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), dict(shapes))
    variables["params"]["backbone"] = frozen(0)["backbone"]

    # Jitted, so that nothing behind the first layer is computed.
    @jax.jit
    def stem(images):
        capture = {"capture_intermediates": lambda module, _: module.name == "stem"}
        _, state = MODEL.apply(variables, images, train=False, mutable="intermediates", **capture)
        return state["intermediates"]["backbone"]["stem"]["__call__"][0]

    x = float64(images)
    for axis in (1, 2):
        # Centres of pixels, not corners, stay where they are.
        x = interpolate(x, axis, np.clip((np.arange(224) + 0.5) * 32 / 224 - 0.5, 0, 31))
    layer = float64(frozen(0)["backbone"]["stem"])
    x = np.pad((127.5 * x + 0.5) / 128, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = convolve(x, layer["kernel"], 2, 0, layer["bias"])
    np.testing.assert_allclose(stem(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "last_map"),
    # The maps that a logit looks at 4x4 positions of. 32x32 is enlarged to 224x224, and 150x225 to
    # 224x352.
    [
        (32, 32, (7, 7)),
        (256, 256, (8, 8)),
        (512, 512, (16, 16)),
        (1024, 1024, (32, 32)),
        (150, 225, (7, 11)),
    ],
)
def test_heads_are_the_same_at_every_size(height, width, last_map):
    logits, params = projected_shapes(MODEL, height, width)
    assert logits.shape == (2, 4 * (last_map[0] - 3) * (last_map[1] - 3))
    # As in the authors' code: channels of 64, 64, 128 and 256 in, 64 to 512 of the maps after.
    for head, convolutions in enumerate([(64, 128, 256, 512), (128, 256, 512), (256, 512), (512,)]):
        kernels = [params[f"head{head}"][f"conv{i}"]["kernel"] for i in range(len(convolutions))]
        assert tuple(kernel.shape[-1] for kernel in kernels) == convolutions
        assert kernels[0].shape[2] == (64, 64, 128, 256)[head]
        assert f"conv{len(convolutions)}" not in params[f"head{head}"]


@pytest.mark.parametrize(("side", "number"), [(32, 4 * 4 * 4), (256, 4 * 5 * 5), (512, 4 * 5 * 5)])
def test_heads_may_get_deeper_with_the_size(side, number):
    logits, params = projected_shapes(DEEPENING, side, side)
    assert logits.shape == (2, number)
    assert ("conv4" in params["head0"]) == (side == 512)


def projected_shapes(model, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    with shallow():
        logits, variables = jax.eval_shape(
            lambda key, x: model.init_with_output(key, x, train=True), jax.random.key(0), images
        )
    return logits, variables["params"]


FULL_SIZE = build(ffhq_effvqgan.get_config().tokenizer.discriminator.model)


def test_what_is_frozen_is_exact_forth_and_back_beside_heads_in_bfloat16():
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)

    def loss(images, variables):
        logits, _ = FULL_SIZE.apply(variables, images, train=True, mutable=["batch_stats"])
        return generator_loss("hinge", logits)

    with shallow():
        init = functools.partial(FULL_SIZE.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        program = jax.make_jaxpr(jax.grad(loss))(images, variables).jaxpr
    products = [
        equation
        for equation in all_equations(program)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        # From map to map: neither of the power iterations, nor at the kernels.
        and equation.invars[0].aval.ndim == equation.outvars[0].aval.ndim == 4
    ]
    of_floats = [e for e in products if e.invars[0].aval.dtype == jnp.float32]
    # At least the stem, 13 layers of seven blocks and eight projections, each forth and back.
    assert len(of_floats) >= 2 * (1 + 13 + 8)
    highest = jax.lax.Precision.HIGHEST
    assert all(e.params["precision"] == (highest, highest) for e in of_floats)
    assert {e.invars[0].aval.dtype.name for e in products} == {"float32", "bfloat16"}


@pytest.mark.slow
def test_the_gradient_at_the_images_is_that_of_float32_in_the_full_size_config():
    """Its cosine with it is 0.998, and with an EfficientNet in bfloat16 0.84."""
    images = random_images(0, 2, 16, 16, 3)
    images = jax.image.resize(images, (2, 256, 256, 3), "bilinear")
    variables = random_variables(MODEL, images)
    variables["params"].update(frozen(0))

    def gradient(model):
        def loss(images, variables):
            logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return generator_loss("hinge", logits)

        return np.asarray(jax.jit(jax.grad(loss))(images, variables), np.float64).ravel()

    exact, ours = gradient(MODEL), gradient(FULL_SIZE)
    assert exact @ ours > 0.99 * np.linalg.norm(exact) * np.linalg.norm(ours)


def test_frozen_parameters_are_the_published_ones_and_a_function_of_the_key():
    first, other = frozen(0), frozen(1)
    assert first.keys() == {*MODEL.frozen}
    jax.tree.map(np.testing.assert_array_equal, MODEL.frozen_params(jax.random.key(0)), first)
    _, published = projected.load_efficientnet_lite("lite0")
    for name, values in first["backbone"].items():
        jax.tree.map(np.testing.assert_array_equal, values, published["params"][name])
    jax.tree.map(np.testing.assert_array_equal, other["backbone"], first["backbone"])
    for mixing, values in other["projection"].items():
        bound = values["kernel"].shape[0] ** -0.5
        for name, value in values.items():
            assert not np.array_equal(value, first["projection"][mixing][name])
            # Kaiming uniform as in PyTorch: uniform up to one by the root of the inputs.
            assert 0.9 * bound < abs(value).max() <= bound
