"""A feature network and a classifier small enough for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.protocol import digest
from vqjax.features.classifiers import ImagenetClassifier

DIM, CLASSES = 6, 4


def build(name="efficientnet_lite1", weights=None, sha256=None, resize="torch", seed=0):
    """As `build_network`: two layers of random weights on 4x4 means of an image of any size."""
    rng = np.random.default_rng(seed)
    variables = {
        "in": rng.normal(size=(48, DIM)).astype(np.float32),
        "out": rng.normal(size=(DIM, CLASSES)).astype(np.float32),
    }

    def apply(variables, images):
        b, h, w, _ = images.shape
        means = images.reshape(b, 4, h // 4, 4, w // 4, 3).mean((2, 4)).reshape(b, -1)
        features = jnp.tanh(means @ variables["in"])
        return features, features @ variables["out"]

    protocol = {"network": "tiny", "weights": digest(variables), "resize": resize}
    return FeatureNetwork(name, DIM, CLASSES, apply, variables, protocol)


def classifier(name="tiny", weights=None):
    """As `imagenet_classifier`: random weights on the mean colour."""
    rng = np.random.default_rng(0)
    variables = rng.normal(0, 20, size=(3, 1000)).astype(np.float32)
    forward = jax.jit(lambda variables, images: images.mean(axis=(1, 2)) @ variables)
    return ImagenetClassifier(name, forward, variables)


def features(images):
    """Float64, by numpy, of images in 8 bits."""
    variables = build().variables
    x = images / 127.5 - 1
    b, h, w, _ = x.shape
    means = x.reshape(b, 4, h // 4, 4, w // 4, 3).mean((2, 4)).reshape(b, -1)
    return np.tanh(means @ variables["in"].astype(np.float64))
