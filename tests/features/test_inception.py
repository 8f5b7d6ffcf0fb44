"""Inception-v3 against a float64 oracle that has PyTorch's layouts and unfolded BatchNorms."""

import functools
import hashlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from oracle_layers import OracleLayers
from PIL import Image

from vqjax.errors import InputError
from vqjax.features import inception
from vqjax.features.folding import fold
from vqjax.features.inception import load_inception, to_input

# What the network sees in place of 299: enough for maps of 2x2 in the end, and of odd and even
# sides on the way there.
SIDE = 107


class Oracle(OracleLayers):
    """The published architecture, and random weights for it under PyTorch's names.

    Args:
        state: weights; those that are missing are drawn when they are needed.
        padded: kinds of blocks ("A", "C", "E") whose averages also count the zeros of the padding.
        averaged: the last block averages where it should take the maximum.
    """

    def __init__(self, state=None, padded="", averaged=False):
        super().__init__(state, epsilon=0.001)
        self.padded, self.averaged = padded, averaged

    def convolve(self, x, name, features, height=1, width=1, stride=1, same=True):
        """With BatchNorm and ReLU."""
        names, size = (f"{name}.conv", f"{name}.bn"), (height, width)
        return np.maximum(self.normed(x, names, features, size, stride, same), 0)

    def within(self, block):
        return lambda x, name, *rest, **more: self.convolve(x, f"{block}.{name}", *rest, **more)

    @staticmethod
    def pool(x, reduce, stride=1):
        """3x3; with a stride of 1 what lies outside is NaN."""
        if stride == 1:
            x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        return reduce(sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride], (-1, -2))

    def average(self, x, kind):
        if kind in self.padded:
            return self.pool(x, np.nansum) / 9
        return self.pool(x, np.nanmean)

    def a(self, x, name, pool):
        conv = self.within(name)
        one = conv(x, "branch1x1", 64)
        five = conv(conv(x, "branch5x5_1", 48), "branch5x5_2", 64, 5, 5)
        three = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3)
        three = conv(three, "branch3x3dbl_3", 96, 3, 3)
        return np.concatenate([one, five, three, conv(self.average(x, "A"), "branch_pool", pool)])

    def b(self, x, name):
        conv = self.within(name)
        three = conv(x, "branch3x3", 384, 3, 3, stride=2, same=False)
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3)
        double = conv(double, "branch3x3dbl_3", 96, 3, 3, stride=2, same=False)
        return np.concatenate([three, double, self.pool(x, np.max, 2)])

    def c(self, x, name, width):
        conv = self.within(name)
        one = conv(x, "branch1x1", 192)
        seven = conv(conv(x, "branch7x7_1", width), "branch7x7_2", width, 1, 7)
        seven = conv(seven, "branch7x7_3", 192, 7, 1)
        double = conv(conv(x, "branch7x7dbl_1", width), "branch7x7dbl_2", width, 7, 1)
        double = conv(conv(double, "branch7x7dbl_3", width, 1, 7), "branch7x7dbl_4", width, 7, 1)
        double = conv(double, "branch7x7dbl_5", 192, 1, 7)
        pooled = conv(self.average(x, "C"), "branch_pool", 192)
        return np.concatenate([one, seven, double, pooled])

    def d(self, x, name):
        conv = self.within(name)
        three = conv(x, "branch3x3_1", 192)
        three = conv(three, "branch3x3_2", 320, 3, 3, stride=2, same=False)
        seven = conv(conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, 1, 7)
        seven = conv(seven, "branch7x7x3_3", 192, 7, 1)
        seven = conv(seven, "branch7x7x3_4", 192, 3, 3, stride=2, same=False)
        return np.concatenate([three, seven, self.pool(x, np.max, 2)])

    def e(self, x, name, last):
        conv = self.within(name)
        one = conv(x, "branch1x1", 320)
        three = conv(x, "branch3x3_1", 384)
        three = [conv(three, "branch3x3_2a", 384, 1, 3), conv(three, "branch3x3_2b", 384, 3, 1)]
        double = conv(conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, 3, 3)
        double = [
            conv(double, "branch3x3dbl_3a", 384, 1, 3),
            conv(double, "branch3x3dbl_3b", 384, 3, 1),
        ]
        maximum = last and not self.averaged
        pooled = self.pool(x, np.nanmax) if maximum else self.average(x, "E")
        return np.concatenate([one, *three, *double, conv(pooled, "branch_pool", 192)])

    def __call__(self, image):
        """Features and logits of an image (height, width, 3), values as the network sees them."""
        x = np.moveaxis(np.asarray(image, np.float64), -1, 0)
        x = self.convolve(x, "Conv2d_1a_3x3", 32, 3, 3, stride=2, same=False)
        x = self.convolve(x, "Conv2d_2a_3x3", 32, 3, 3, same=False)
        x = self.pool(self.convolve(x, "Conv2d_2b_3x3", 64, 3, 3), np.max, 2)
        x = self.convolve(x, "Conv2d_3b_1x1", 80)
        x = self.pool(self.convolve(x, "Conv2d_4a_3x3", 192, 3, 3, same=False), np.max, 2)
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self.a(x, f"Mixed_{name}", pool)
        x = self.b(x, "Mixed_6a")
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = self.c(x, f"Mixed_{name}", width)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", last=False)
        features = self.e(x, "Mixed_7c", last=True).mean((1, 2))
        weight = self.weight("fc.weight", lambda: self.rng.normal(0, 0.03, (1008, 2048)))
        self.weight("fc.bias", lambda: self.rng.normal(0, 1, 1008))
        return features, weight @ features


@functools.cache
def random_image():
    return np.random.default_rng(1).uniform(-1, 1, (90, 61, 3)).astype(np.float32)


@functools.cache
def resized():
    return sample(random_image(), SIDE, torch_position)


@functools.cache
def expected():
    """Random weights, and the features and logits of the random image."""
    oracle = Oracle()
    return (oracle.state, *oracle(resized()))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.npz"
    # As newer versions of PyTorch save them.
    counts = {
        name.replace("running_var", "num_batches_tracked"): np.array(7)
        for name in expected()[0]
        if name.endswith("running_var")
    }
    np.savez(file, **expected()[0], **counts)
    return file


@pytest.fixture(scope="module")
def loaded(weights_file):
    return load_inception(weights_file)


@pytest.fixture(scope="module")
def lowered(loaded):
    """The program of features and logits, were the network one for smaller images."""
    with mock.patch.object(inception, "INPUT_SIZE", SIDE):
        apply = jax.jit(functools.partial(loaded[0].apply, method="pooled"))
        return apply.lower(loaded[1], jnp.asarray(random_image()[None]))


@pytest.fixture(scope="module")
def outputs(lowered, loaded):
    """Features and logits of the random image."""
    features, logits = lowered.compile()(loaded[1], jnp.asarray(random_image()[None]))
    return features[0], logits[0]


def distance(output, other):
    return np.abs(np.asarray(output) - other).max() / np.abs(other).max()


def test_features_and_logits_without_bias_equal_the_float64_oracle(outputs):
    for output, own in zip(outputs, expected()[1:], strict=True):
        assert distance(output, own) < 1e-4


@pytest.mark.parametrize(
    "quirk", [{"padded": "A"}, {"padded": "C"}, {"padded": "E"}, {"averaged": True}], ids=str
)
def test_every_quirk_of_the_pooling_matters(quirk, outputs):
    features, _ = Oracle(expected()[0], **quirk)(resized())
    assert distance(outputs[0], features) > 1e-3


def torch_position(index, size, new):
    return max((index + 0.5) * size / new - 0.5, 0)


def tf_position(index, size, new):
    return index * size / new


def sample(image, new, position):
    """Bilinear in float64, at these positions of each axis."""
    image = np.asarray(image, np.float64)
    for axis in (0, 1):
        size, rows = image.shape[axis], []
        for index in range(new):
            at = position(index, size, new)
            low = int(np.floor(at))
            one, two = (np.take(image, min(i, size - 1), axis) for i in (low, low + 1))
            rows.append(one + (at - low) * (two - one))
        image = np.stack(rows, axis)
    return image


def eight_bit(*shape):
    return np.random.default_rng(2).integers(0, 256, shape, np.uint8)


# Larger, smaller, one of each, and one side as it is to be.
SIZES = [(64, 41), (400, 331), (310, 256), (299, 128)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torch_and_tf_are_bilinear_at_their_own_positions(size):
    pixels = eight_bit(*size, 3)
    images = jnp.asarray(pixels[None] / 127.5 - 1, jnp.float32)
    torch = sample(pixels / 127.5 - 1, 299, torch_position)
    np.testing.assert_allclose(to_input(images, "torch")[0], torch, atol=1e-4)
    tf = (sample(pixels, 299, tf_position) - 128) / 128
    np.testing.assert_allclose(to_input(images, "tf")[0], tf, atol=1e-4)
    assert np.abs(tf - torch).max() > 0.1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_clean_is_the_bicubic_of_pillow(size):
    # Black beside white, where a cubic overshoots.
    pixels = np.where(eight_bit(*size, 3) > 127, 255, 0).astype(np.uint8)
    channels = [
        Image.fromarray(pixels[..., c].astype(np.float32)).resize((299, 299), Image.BICUBIC)
        for c in range(3)
    ]
    assert np.max(channels) > 260
    clean = (np.clip(np.stack(channels, -1), 0, 255) - 128) / 128
    images = jnp.asarray(pixels[None] / 127.5 - 1, jnp.float32)
    np.testing.assert_allclose(to_input(images, "clean")[0], clean, atol=2e-5)


def test_images_of_the_size_are_left_alone():
    pixels = eight_bit(1, 299, 299, 3)
    images = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
    np.testing.assert_allclose(to_input(images, "torch"), images, atol=1e-7)
    for resize in ("tf", "clean"):
        values = (pixels.astype(np.float64) - 128) / 128
        np.testing.assert_allclose(to_input(images, resize), values, atol=1e-6)


def test_bfloat16_computes_in_it_and_returns_float32(loaded):
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    module = inception.InceptionV3(dtype="bfloat16")
    apply = functools.partial(module.apply, method="logits")
    program, logits = jax.make_jaxpr(apply, return_shape=True)(loaded[1], images)
    assert "bf16[2,149,149,32]" in str(program) and "f32[2,149,149,32]" not in str(program)
    assert logits.shape == (2, 1008) and logits.dtype == jnp.float32


def test_products_of_float32_are_of_float32_on_every_device(lowered):
    products = [
        line
        for line in lowered.as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    # 94 convolutions, the resizing along two axes, and the classifier.
    assert len(products) >= 97
    assert all("HIGHEST" in line for line in products)


def test_wrong_files_are_one_clear_line(weights_file, tmp_path):
    address = "https://github.com/mseitzer/pytorch-fid/releases/.*6726825d.pth"
    with pytest.raises(InputError, match=f"none.pth: No such file.*fetch Inception-v3.*{address}"):
        load_inception(tmp_path / "none.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=f"has sha256 .*, expected 6726825d: .*{address}"):
        load_inception(other)
    with pytest.raises(InputError, match=r"inception.npz has sha256 .*, expected 00000000:"):
        load_inception(weights_file, sha256="00000000")


def test_the_hash_of_the_file_is_returned(weights_file, loaded):
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert loaded[2] == digest


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", None, r"fc.bias in x.npz is missing, expected float32\[1008\]"),
        (
            "Mixed_6c.branch7x7_2.conv.weight",
            np.zeros((160, 160, 7, 1), np.float32),
            r"Mixed_6c.branch7x7_2.conv.weight .* expected float32\[160, 160, 1, 7\]",
        ),
        ("AuxLogits.fc.bias", np.zeros(3), r"AuxLogits.fc.bias .* expected no such array"),
    ],
    ids=["missing", "other shape", "unknown"],
)
def test_arrays_of_another_network_are_named(name, value, message, loaded):
    state = {k: v for k, v in (expected()[0] | {name: value}).items() if v is not None}
    with pytest.raises(InputError, match=message):
        fold(state, loaded[1]["params"], inception._names, 1e-3, "x.npz")
