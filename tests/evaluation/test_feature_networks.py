"""Networks by name: what they are called, what they give, what they ask for."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network

from vqjax.errors import InputError
from vqjax.evaluation.feature_networks import as_saved
from vqjax.evaluation.network_registry import build_network
from vqjax.features.efficientnet_lite import load_efficientnet_lite


def test_lite1_gives_the_input_of_its_classifier():
    network = build_network()
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 240, 240, 3)), jnp.float32)
    features, logits = network(images)
    assert features.shape == (2, network.dim) and logits.shape == (2, network.num_logits)
    classifier = network.variables["params"]["classifier"]
    expected = features @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    module, variables = load_efficientnet_lite("lite1")
    np.testing.assert_allclose(logits, module.apply(variables, images, method="logits"), atol=1e-3)


def test_only_inception_has_the_usual_names():
    inception = dataclasses.replace(tiny_network.build(), name="inception")
    assert [inception.metric(name) for name in ("FID", "rKID", "IS")] == ["FID", "rKID", "IS"]
    network = tiny_network.build("efficientnet_lite1")
    assert [network.metric(name) for name in ("FID", "rFID", "KID", "precision")] == [
        *("FD-lite1", "rFD-lite1", "KD-lite1", "precision-lite1")
    ]


def test_pixels_of_a_file_are_whole_steps():
    images = jnp.linspace(-1.2, 1.2, 48).reshape(1, 4, 4, 3)
    rounded = as_saved(images, "png")
    levels = (np.asarray(rounded) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert np.abs(rounded - jnp.clip(images, -1, 1)).max() <= 1 / 255 + 1e-6
    np.testing.assert_array_equal(as_saved(images, "float"), jnp.clip(images, -1, 1))


def test_what_is_missing_is_said():
    with pytest.raises(
        InputError, match=r"inception needs its weights: fetch https://.*--network_weights"
    ):
        build_network("inception")
    with pytest.raises(
        InputError, match=r"network 'resnet': .*valid: efficientnet_lite1, inception"
    ):
        build_network("resnet")
    with pytest.raises(InputError, match=r"resize 'lanczos': .*valid: clean, tf, torch"):
        build_network("inception", Path("weights.pth"), resize="lanczos")
