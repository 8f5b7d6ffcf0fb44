"""Discriminators against float64 oracles, and what the generator's step and sharding need."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.lib.stride_tricks import sliding_window_view

from vqjax.discriminators import DISCRIMINATORS, build_discriminator, projected
from vqjax.discriminators.normalization import SpectralConvolution
from vqjax.errors import InputError
from vqjax.features import efficientnet_lite


def build(config):
    return build_discriminator("tokenizer.discriminator.model", config)


def random_images(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def random_variables(model, images, seed=0):
    """Variables of the right shapes; drawn here, as compiling `init` takes long."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        low, high = {"var": (0.5, 2), "scale": (0.5, 1.5), "kernel": (-1, 1)}.get(name, (-0.5, 0.5))
        values = rng.uniform(low, high, leaf.shape)
        if name == "kernel":
            values *= np.sqrt(3 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


# The oracle: float64, from the published description, sharing no code with the library.


def convolve(x, kernel, stride, padding, bias=0.0):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, kernel, axes=[(4, 5, 3), (0, 1, 2)]) + bias


def batch_norm(x, params, averages, train):
    """The result and the averages afterwards."""
    mean, variance = averages["mean"], averages["var"]
    if train:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        averages = {
            "mean": 0.9 * averages["mean"] + 0.1 * mean,
            "var": 0.9 * averages["var"] + 0.1 * variance,
        }
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"], averages


def leaky_relu(x):
    return np.where(x > 0, x, 0.2 * x)


def spectral(params, averages):
    """The normalised kernel, and the power iteration's vector after one more."""
    kernel = params["kernel"]
    matrix = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    right = matrix.T @ averages["left"]
    right /= np.linalg.norm(right)
    left = matrix @ right
    left /= np.linalg.norm(left)
    return kernel / (left @ matrix @ right), {"left": left}


def patchgan_oracle(variables, x, train):
    params, old = variables["params"], variables["batch_stats"]
    new = {}
    x = leaky_relu(convolve(x, params["conv0"]["kernel"], 2, 1, params["conv0"]["bias"]))
    for layer, stride in ((1, 2), (2, 2), (3, 1)):
        x = convolve(x, params[f"conv{layer}"]["kernel"], stride, 1)
        norm = f"norm{layer}"
        x, new[norm] = batch_norm(x, params[norm], old[norm], train)
        x = leaky_relu(x)
    x = convolve(x, params["logits"]["kernel"], 1, 1, params["logits"]["bias"])
    return x.reshape(len(x), -1), new


def interpolate(x, axis, positions):
    """Linear interpolation along an axis at fractional positions, held at the ends."""
    size = x.shape[axis]
    matrix = np.stack([np.interp(positions, np.arange(size), row) for row in np.eye(size)], 1)
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def projected_oracle(variables, features):
    params, old = variables["params"], variables["batch_stats"]
    mixing = params["projection"]
    mixed = [
        feature @ mixing[f"channel_mixing{i}"]["kernel"] + mixing[f"channel_mixing{i}"]["bias"]
        for i, feature in enumerate(features)
    ]
    x, logits, new = 0, [], {}
    for i in (3, 2, 1, 0):
        x = x + mixed[i]
        for axis in (1, 2):
            # Twice the positions, the first and last at the ends ("align corners").
            x = interpolate(x, axis, np.linspace(0, x.shape[axis] - 1, 2 * x.shape[axis]))
        x = x @ mixing[f"scale_mixing{i}"]["kernel"] + mixing[f"scale_mixing{i}"]["bias"]
        assert x.shape[-1] == [64, 64, 128, 256][i]
        head, averages = params[f"head{i}"], old[f"head{i}"]
        new[f"head{i}"] = {}
        y = x
        while y.shape[1] > 8:
            layer = len(new[f"head{i}"]) // 2
            conv, norm = f"conv{layer}", f"norm{layer}"
            kernel, new[f"head{i}"][conv] = spectral(head[conv], averages[conv])
            y = convolve(y, kernel, 2, 1)
            y, new[f"head{i}"][norm] = batch_norm(y, head[norm], averages[norm], train=True)
            y = leaky_relu(y)
        kernel, new[f"head{i}"]["logits"] = spectral(head["logits"], averages["logits"])
        logits.append(convolve(y, kernel, 1, 0).reshape(len(y), -1))
    return np.concatenate(logits[::-1], axis=1), new


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def assert_trees_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


# PatchGAN.


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
    with pytest.raises(InputError, match=r"23x40, expected at least 24x24; lower .*num_layers"):
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


# Spectral normalisation.


@functools.cache
def spectral_layer():
    """A layer, an input of a single position, and initial variables."""
    layer, x = SpectralConvolution(6, 4), random_images(5, 1, 4, 4, 3)
    return layer, x, jax.jit(layer.init, static_argnames="train")(jax.random.key(0), x, train=False)


def test_spectral_kernel_starts_as_pytorch_s():
    _, _, variables = spectral_layer()
    kernel = variables["params"]["kernel"]
    bound = kernel[..., 0].size ** -0.5
    assert 0.98 * bound < jnp.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)


def test_power_iteration_finds_the_largest_singular_value():
    layer, x, variables = spectral_layer()
    apply = jax.jit(lambda v: layer.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for _ in range(100):
        variables = {**variables, **apply(variables)}
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    largest = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    expected = convolve(np.asarray(x, np.float64), kernel / largest, 1, 0)
    np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-4)


def test_gradient_of_a_spectral_kernel_holds_the_singular_vectors_fixed():
    layer, x, variables = spectral_layer()
    state = {"batch_stats": variables["batch_stats"]}

    def total(kernel):
        return jnp.sum(layer.apply({"params": {"kernel": kernel}, **state}, x, train=False))

    value, gradient = jax.value_and_grad(total)(variables["params"]["kernel"])
    # Eq. 12 of the paper; the normalised kernel's own gradient is the one patch that there is.
    params, averages = float64(variables["params"]), float64(variables["batch_stats"])
    normalised, after = spectral(params, averages)
    largest = params["kernel"].ravel()[0] / normalised.ravel()[0]
    right = params["kernel"] @ averages["left"]
    own = np.repeat(float64(x)[0][..., None], 6, -1)
    expected = (
        own - (own * normalised).sum() * right[..., None] / np.linalg.norm(right) * after["left"]
    )
    np.testing.assert_allclose(value, (own * normalised).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, expected / largest, rtol=1e-3, atol=1e-4)


# The projected discriminator.


@pytest.fixture(autouse=True, scope="module")
def _weights_are_read_once():
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(projected.load_efficientnet_lite)
        patch.setattr(projected, "load_efficientnet_lite", load)
        yield


MODEL = build({"name": "projected"})


@functools.cache
def frozen(seed):
    return MODEL.frozen_params(jax.random.key(seed))


def shallow():
    """One block a stage in the backbone, which compiles in half the time."""
    return mock.patch.dict(efficientnet_lite._DEPTHS, lite0=(1,) * 7)


def projected_step(size, images):
    """Variables with the frozen parameters, and one jitted step, enlarging to `size` pixels."""
    weights = frozen(0)
    backbone = shallow() if size < 224 else contextlib.nullcontext()
    with backbone, mock.patch.object(projected, "_SIZE", size):
        variables = random_variables(MODEL, images)
        variables["params"].update(weights)

        def total(images, variables):
            logits, state = MODEL.apply(
                variables,
                images,
                train=True,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=lambda module, _: module.name == "backbone",
            )
            (features,) = state["intermediates"]["backbone"]["__call__"]
            return jnp.sum(logits * jnp.sign(logits)), (logits, state["batch_stats"], features)

        return variables, jax.jit(jax.grad(total, has_aux=True))(images, variables)


@pytest.mark.parametrize("size", [64, pytest.param(224, marks=pytest.mark.slow)])
def test_projected_equals_the_float64_oracle_and_sees_every_pixel(size):
    variables, results = projected_step(size, random_images(7, 2, 32, 32, 3))
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
    ("height", "width", "number"),
    # Maps of 224, 256 and 512 pixels end at 7, 8 and 8 positions a side, and those of 150x225,
    # enlarged to 224x352, at 7x11.
    [(32, 32, 4 * 4 * 4), (256, 256, 4 * 5 * 5), (512, 512, 4 * 5 * 5), (150, 225, 4 * 4 * 8)],
)
def test_projected_takes_images_of_any_size(height, width, number):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    with shallow():
        logits, _ = jax.eval_shape(
            lambda key, x: MODEL.init_with_output(key, x, train=True), jax.random.key(0), images
        )
    assert logits.shape == (2, number)


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


# Both.


def test_shapes_of_frozen_parameters_are_those_of_init():
    for name in DISCRIMINATORS:
        model = build({"name": name})
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(
            lambda key, x, model=model: model.init(key, x, train=False), jax.random.key(0), images
        )
        expected = {part: variables["params"][part] for part in model.frozen}
        values = frozen(0) if model == MODEL else model.frozen_params(jax.random.key(0))
        assert jax.tree.map(jnp.shape, values) == jax.tree.map(jnp.shape, expected)
        assert len(variables["params"]) > len(values)


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


def test_spectral_norm_keeps_its_power_iteration_in_training_only():
    layer, x, variables = spectral_layer()
    logits, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    same, unchanged = layer.apply(variables, x, train=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(same, logits)
    before, after, same = (stats["batch_stats"]["left"] for stats in (variables, state, unchanged))
    np.testing.assert_array_equal(before, same)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(jnp.linalg.norm(after), 1, rtol=1e-6)


def test_unknown_names_and_fields_are_refused():
    with pytest.raises(
        InputError, match=r"discriminator\.model\.name='patch'.*patchgan, projected"
    ):
        build({"name": "patch"})
    with pytest.raises(InputError, match=r"model\.widht.*did you mean 'width'"):
        build({"name": "patchgan", "widht": 3})
