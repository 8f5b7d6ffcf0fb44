"""Networks by name: what they are called, what they give, what they ask for."""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network

from vqjax.errors import InputError
from vqjax.evaluation import network_registry
from vqjax.evaluation.feature_networks import as_saved
from vqjax.evaluation.network_registry import build_network
from vqjax.evaluation.protocol import digest
from vqjax.pixels import to_float


def test_lite1_is_seen_at_the_size_of_its_training(monkeypatch):
    def apply(variables, images, method):
        assert method == "pooled" and images.shape[1:] == (240, 240, 3)
        return images.mean((1, 2)), images[:, 0, 0]

    asked = []

    def load(variant):
        asked.append(variant)
        return types.SimpleNamespace(apply=apply), {}

    monkeypatch.setattr(network_registry, "load_efficientnet_lite", load)
    network = build_network.__wrapped__()
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 240, 240, 3)), jnp.float32)
    for outputs in (network(images), network.outputs({}, images).values()):
        # Images of that size are left alone.
        np.testing.assert_allclose(next(iter(outputs)), images.mean((1, 2)), atol=1e-6)
    assert network(images[:, :64, :80])[0].shape == (2, 3) and asked == ["lite1"]


def test_lite1_has_the_dimensions_that_it_tells():
    network = build_network()
    images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
    features, logits = jax.eval_shape(network.apply, network.variables, images)
    assert features.shape == (2, network.dim) and logits.shape == (2, network.num_logits)
    assert network.protocol["weights"] == digest(network.variables)


def test_outputs_are_of_bytes_or_floats():
    network = tiny_network.build()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    outputs = [
        network.outputs(network.variables, x) for x in (jnp.asarray(pixels), to_float(pixels))
    ]
    np.testing.assert_array_equal(*(o["features"] for o in outputs))
    np.testing.assert_array_equal(outputs[0]["logits"], network(to_float(pixels))[1])
    np.testing.assert_allclose(outputs[0]["features"], tiny_network.features(pixels), atol=1e-5)


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
