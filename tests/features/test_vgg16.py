"""VGG16's linear layers against a float64 oracle, and its file; the trunk is tested with LPIPS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.features.vgg16 import VGG16, VGG16Classifier, load_vgg16, vgg16_params
from vqjax.losses.perceptual import load_lpips

# Torchvision's numbers of the thirteen convolutions.
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
MODULE = VGG16Classifier(width=6)


@functools.cache
def state():
    """Torchvision's state dict: LPIPS's trunk, which is the same, and narrow linear layers."""
    trunk = load_lpips("vgg16")[1]["params"]["trunk"]
    arrays = {}
    for number, name in zip(NUMBERS, sorted(trunk), strict=True):
        arrays[f"features.{number}.weight"] = trunk[name]["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{number}.bias"] = trunk[name]["bias"]
    rng = np.random.default_rng(0)
    for number, (inputs, outputs) in zip((0, 3, 6), ((25088, 6), (6, 6), (6, 1000)), strict=True):
        weight = rng.normal(0, (2 / inputs) ** 0.5, (outputs, inputs))
        arrays[f"classifier.{number}.weight"] = weight.astype(np.float32)
        arrays[f"classifier.{number}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    return arrays


def linear(x, number):
    weight, bias = (
        state()[f"classifier.{number}.{k}"].astype(np.float64) for k in ("weight", "bias")
    )
    return x @ weight.T + bias


def oracle(features):
    """Logits of a map (height, width, 512) of the last convolution."""
    height, width = (side // 2 for side in features.shape[:2])
    x = features[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 512).max((1, 3))
    pooled = np.zeros((512, 7, 7))
    for i in range(7):
        rows = slice(int(np.floor(i * height / 7)), int(np.ceil((i + 1) * height / 7)))
        for j in range(7):
            columns = slice(int(np.floor(j * width / 7)), int(np.ceil((j + 1) * width / 7)))
            pooled[:, i, j] = x[rows, columns].mean((0, 1))
    x = np.maximum(linear(pooled.reshape(-1), 0), 0)
    return linear(np.maximum(linear(x, 3), 0), 6)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (224, 288)])
def test_logits_equal_the_float64_oracle(height, width, monkeypatch):
    params = jax.device_put(vgg16_params(MODULE, state(), "f"))
    features = np.random.default_rng(1).normal(0, 1, (1, height // 16, width // 16, 512))
    features = np.maximum(features, 0).astype(np.float32)
    # The trunk would take all of the time.
    monkeypatch.setattr(VGG16, "__call__", lambda self, images: {"relu5_3": jnp.asarray(features)})
    logits = MODULE.apply({"params": params}, jnp.zeros((1, height, width, 3)), method="logits")
    expected = oracle(features[0].astype(np.float64))
    np.testing.assert_allclose(logits[0], expected, atol=1e-5 * np.abs(expected).max())


def test_each_layer_is_read_under_its_number():
    params = vgg16_params(MODULE, state(), "f")
    trunk = load_lpips("vgg16")[1]["params"]["trunk"]
    assert params["trunk"].keys() == trunk.keys()
    jax.tree.map(np.testing.assert_array_equal, params["trunk"], trunk)


def test_it_has_its_published_number_of_parameters():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = functools.partial(VGG16Classifier().init, method="logits")
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 138_357_544


def test_a_file_of_another_width_or_hash_is_refused(tmp_path):
    file = tmp_path / "vgg16.npz"
    np.savez(file, **state())
    with pytest.raises(InputError, match=r"classifier\.0\.bias in .*vgg16.npz is float32\[6\]"):
        load_vgg16(file)
    other = tmp_path / "vgg16-397923af.pth"
    other.write_bytes(b"not what was fetched")
    address = "https://download.pytorch.org/models/vgg16-397923af.pth"
    with pytest.raises(InputError, match=f"expected 397923af: .*fetch VGG16 from {address}"):
        load_vgg16(other)
