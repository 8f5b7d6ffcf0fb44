"""ResNet against a float64 oracle, and the classifiers by name."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from oracle_layers import OracleLayers
from PIL import Image

from vqjax.errors import InputError
from vqjax.features import classifiers, resnet
from vqjax.features.classifiers import imagenet_classifier
from vqjax.features.resnet import ResNet, load_resnet101, resnet_params

DEPTHS = (1, 2, 1, 1)


class Oracle(OracleLayers):
    """The published architecture with unfolded BatchNorms, and random weights for it.

    Args:
        state: weights under torchvision's names; those that are missing are drawn.
        first: the first convolution of a block strides, as in the paper, not the second.
    """

    def __init__(self, state=None, first=False):
        super().__init__(state, epsilon=0.00001)
        self.first = first

    def convolve(self, x, names, features, size=1, stride=1):
        """With zeros around it, and BatchNorm."""
        return self.normed(x, names, features, (size, size), stride)

    def block(self, x, name, width, stride):
        strides = (stride, 1) if self.first else (1, stride)
        y = np.maximum(self.convolve(x, names(name, 1), width, 1, strides[0]), 0)
        y = np.maximum(self.convolve(y, names(name, 2), width, 3, strides[1]), 0)
        y = self.convolve(y, names(name, 3), 4 * width)
        if len(x) != len(y):
            shortcut = f"{name}.downsample.0", f"{name}.downsample.1"
            x = self.convolve(x, shortcut, 4 * width, 1, stride)
        return np.maximum(x + y, 0)

    def __call__(self, image):
        """Logits of an image (height, width, 3) in [-1, 1]."""
        x = (np.asarray(image, np.float64) + 1) / 2
        x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        x = np.moveaxis(x, -1, 0)
        x = np.maximum(self.convolve(x, ("conv1", "bn1"), 64, 7, 2), 0)
        x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))
        for stage, depth in enumerate(DEPTHS, start=1):
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.block(x, f"layer{stage}.{block}", 32 * 2**stage, stride)
        weight = self.weight("fc.weight", lambda: self.rng.normal(0, 0.03, (1000, 2048)))
        return weight @ x.mean((1, 2)) + self.weight("fc.bias", lambda: self.rng.normal(size=1000))


def names(block, number):
    return f"{block}.conv{number}", f"{block}.bn{number}"


@functools.cache
def random_image():
    return np.random.default_rng(1).uniform(-1, 1, (70, 45, 3)).astype(np.float32)


@functools.cache
def expected():
    """Random weights and the logits of the random image."""
    oracle = Oracle()
    return oracle.state, oracle(random_image())


@functools.cache
def logits():
    module = ResNet(DEPTHS)
    params = resnet_params(module, expected()[0], "f")
    apply = jax.jit(functools.partial(module.apply, method="logits"))
    return apply({"params": params}, jnp.asarray(random_image()[None]))[0]


def test_logits_equal_the_float64_oracle():
    np.testing.assert_allclose(logits(), expected()[1], atol=1e-4 * np.abs(expected()[1]).max())


def test_which_convolution_strides_matters():
    other = Oracle(expected()[0], first=True)(random_image())
    assert np.abs(logits() - other).max() > 0.01 * np.abs(other).max()


def test_resnet_101_has_its_published_number_of_parameters():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda key, images: ResNet().init(key, images, method="logits"), jax.random.key(0), images
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    # A convolution has one bias in place of its BatchNorm's weight and bias.
    channels = sum(x.size for x in jax.tree.leaves(shapes) if x.ndim == 1) - 1000
    assert count + channels == 44_549_160


def test_a_file_of_another_depth_or_hash_is_refused(tmp_path):
    file = tmp_path / "resnet.npz"
    np.savez(file, **expected()[0])
    with pytest.raises(InputError, match=r"layer1\.1\.bn1\.bias in .*resnet.npz is missing"):
        load_resnet101(file)
    other = tmp_path / "resnet101-63fe2227.pth"
    other.write_bytes(b"not what was fetched")
    address = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
    hashes = "63fe2227 or 5d3b4d8f or cd907fc2"
    with pytest.raises(InputError, match=f"expected {hashes}: .*fetch ResNet-101 from {address}"):
        load_resnet101(other)
    with pytest.raises(InputError, match=r"has sha256 .*, expected 0123abcd: "):
        load_resnet101(file, "0123ABCD")


def test_classifiers_take_images_of_any_size(monkeypatch):
    def apply(variables, images, method):
        """All that is classified, in place of its classes."""
        assert method == "logits"
        return variables["scale"] * jnp.pad(images.reshape(len(images), -1), ((0, 0), (0, 808)))

    def load(file, sha256):
        asked.append((file, sha256))
        return types.SimpleNamespace(apply=apply), {"scale": np.float32(2)}, "0" * 64

    asked = []
    monkeypatch.setattr(resnet, "load_resnet101", load)
    monkeypatch.setattr(resnet, "INPUT_SIZE", 8)
    classify = imagenet_classifier("resnet101", Path("weights.pth"), "01234567")
    assert asked == [(Path("weights.pth"), "01234567")]
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 20, 20, 3)).astype(np.float32)
    # Pillow's is antialiased, too.
    resized = [
        Image.fromarray(image[..., c]).resize((8, 8), Image.BILINEAR)
        for image in pixels
        for c in range(3)
    ]
    expected = 2 * np.moveaxis(np.reshape(resized, (2, 3, 8, 8)), 1, -1).reshape(2, -1)
    np.testing.assert_allclose(classify(jnp.asarray(pixels))[:, :192], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet50", None, "classifier 'resnet50': did you mean 'resnet101'"),
        (
            "resnet101",
            None,
            r"needs a file of its weights \(classifier_weights\): fetch it from https:.*63fe2227",
        ),
        ("resnet101", "none.pth", "none.pth: No such file"),
        ("efficientnet_lite1", "w.pth", "comes with its own weights: leave w.pth out"),
    ],
)
def test_classifiers_that_cannot_be_loaded_are_one_clear_line(name, weights, message):
    with pytest.raises(InputError, match=message):
        imagenet_classifier(name, Path(weights) if weights else None)


def test_efficientnets_are_called_by_their_names(monkeypatch):
    asked = []

    def load(variant):
        asked.append(variant)
        raise InputError("loaded")

    monkeypatch.setattr(classifiers.efficientnet_lite, "load_efficientnet_lite", load)
    for name in classifiers.CLASSIFIERS[:2]:
        with pytest.raises(InputError, match="loaded"):
            imagenet_classifier(name)
    assert asked == ["lite0", "lite1"]
