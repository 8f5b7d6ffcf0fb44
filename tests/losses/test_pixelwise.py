"""Losses against float64 oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vqjax.losses.cross_entropy import cross_entropy
from vqjax.losses.pixelwise import l1_loss, l2_loss, psnr


@pytest.fixture
def images():
    pair = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5, 3))
    return jnp.asarray(pair, jnp.float32)


def test_reconstruction_losses_are_means_over_all_values(images):
    a, b = np.asarray(images, np.float64)
    np.testing.assert_allclose(l1_loss(*images), np.abs(a - b).mean(), rtol=1e-6)
    np.testing.assert_allclose(l2_loss(*images), ((a - b) ** 2).mean(), rtol=1e-6)


def test_reconstruction_losses_of_bfloat16_are_taken_in_float32():
    a = jnp.full((1, 64, 64, 3), 0.5, jnp.bfloat16)
    b = jnp.full((1, 64, 64, 3), 0.5078125, jnp.bfloat16)
    assert l1_loss(a, b).dtype == l2_loss(a, b).dtype == jnp.float32
    np.testing.assert_allclose(l1_loss(a, b), 0.0078125, rtol=1e-6)
    np.testing.assert_allclose(l2_loss(a, b), 0.0078125**2, rtol=1e-6)


def test_psnr_is_that_of_each_image(images):
    a, b = np.asarray(images, np.float64)
    mse = ((a - b) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr(*images), 10 * np.log10(4 / mse), rtol=1e-5)


def test_psnr_clips_reconstructions_and_is_finite_for_equal_images():
    white = jnp.ones((1, 4, 4, 3))
    np.testing.assert_allclose(psnr(white, 5 * white), 106.02, atol=0.01)
    # Clipped to -1 everywhere, the error is the whole peak to peak: 0 dB.
    np.testing.assert_allclose(psnr(white, -3 * white), 0, atol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_each_position(label_smoothing):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 30, (2, 5, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (2, 5))
    target = (1 - label_smoothing) * np.eye(7)[labels] + label_smoothing / 7
    expected = -(target * scipy.special.log_softmax(logits.astype(np.float64), -1)).sum(-1)
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_of_bfloat16_logits_is_float32_with_the_softmax_gradient():
    logits = jnp.array([[2.0, -1.0, 0.5]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([1])).dtype == jnp.float32
    logits = logits.astype(jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, jnp.array([1])).sum()))(logits)
    np.testing.assert_allclose(
        gradient, scipy.special.softmax(logits, -1) - np.eye(3)[[1]], atol=1e-6
    )


def test_cross_entropy_takes_forbidden_classes():
    loss = cross_entropy(jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([2]))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
