"""Discriminators in float64 numpy, and random images and variables to compare them on."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vqjax.discriminators import build_discriminator


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
