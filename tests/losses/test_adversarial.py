"""Adversarial losses and the adaptive weight against float64 oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(0.5, 2, (4, 9)), RNG.normal(-0.5, 2, (3, 9))


@pytest.mark.parametrize(
    ("kind", "of_discriminator", "of_generator"),
    [
        (
            "hinge",
            np.maximum(0, 1 - REAL).mean() + np.maximum(0, 1 + FAKE).mean(),
            -FAKE.mean(),
        ),
        (
            "non_saturating",
            # -log D(real) - log(1 - D(fake)) and -log D(fake), D the sigmoid.
            -np.log(1 / (1 + np.exp(-REAL))).mean() - np.log(1 - 1 / (1 + np.exp(-FAKE))).mean(),
            -np.log(1 / (1 + np.exp(-FAKE))).mean(),
        ),
    ],
)
def test_losses_equal_their_definitions(kind, of_discriminator, of_generator):
    real, fake = jnp.asarray(REAL, jnp.float32), jnp.asarray(FAKE, jnp.float32)
    np.testing.assert_allclose(discriminator_loss(kind, real, fake), of_discriminator, rtol=1e-5)
    np.testing.assert_allclose(generator_loss(kind, fake), of_generator, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_losses_of_large_bfloat16_logits_are_finite_float32(kind):
    logits = jnp.array([[300.0, -300.0]], jnp.bfloat16)
    for loss in (discriminator_loss(kind, logits, logits), generator_loss(kind, logits)):
        assert loss.dtype == jnp.float32 and jnp.isfinite(loss)


def test_hinge_has_no_gradient_beyond_the_margin_and_the_generator_always_has():
    gradient = jax.grad(lambda real: discriminator_loss("hinge", real, real - 5))
    np.testing.assert_array_equal(gradient(jnp.array([[1.5, 2.0]])), 0)
    np.testing.assert_allclose(gradient(jnp.array([[0.5, 0.0]])), -0.5)
    fake = jax.grad(lambda fake: generator_loss("hinge", fake))(jnp.array([[9.0, -9.0]]))
    np.testing.assert_allclose(fake, -0.5)


def test_adaptive_weight_is_the_clamped_ratio_of_norms():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 1e-2, (2, 3, 3, 4, 3))
    expected = np.sqrt((ours**2).sum()) / (np.sqrt((theirs**2).sum()) + 1e-4)
    arrays = jnp.asarray(ours, jnp.float32), jnp.asarray(theirs, jnp.float32)
    weight = adaptive_weight(*arrays, maximum=10.0)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    np.testing.assert_allclose(adaptive_weight(*arrays, maximum=0.5), 0.5)
    # A vanishing adversarial gradient: the ratio is bounded by the 1e-4 and then by the maximum.
    np.testing.assert_allclose(adaptive_weight(arrays[0], 0 * arrays[1], 10.0), 10.0)


def test_adaptive_weight_of_bfloat16_is_float32_and_a_constant():
    ours, theirs = jnp.full((64, 64), 3.0, jnp.bfloat16), jnp.full((64, 64), 1.0, jnp.bfloat16)
    weight = adaptive_weight(ours, theirs, 10.0)
    assert weight.dtype == jnp.float32
    np.testing.assert_allclose(weight, 3, rtol=1e-5)
    for argument in (0, 1):
        gradient = jax.grad(adaptive_weight, argument)(ours, theirs, 10.0)
        np.testing.assert_array_equal(gradient, 0)


def two_logits(np, weights, images):
    """Of each image (of three by four pixels), smooth in these and in the weights."""
    hidden = np.tanh(images.reshape(-1, 36) @ weights.reshape(36, 4))
    return np.stack([hidden[:, 0] * hidden[:, 1], hidden[:, 2] + hidden[:, 3] ** 2], 1)


def numeric_r1(weights, images, step=1e-4):
    """By central differences of the logits' sum in float64."""
    squares = 0.0
    for offset in step * np.eye(36).reshape(36, 1, 3, 4, 3):
        ahead, behind = (two_logits(np, weights, images + d).sum(1) for d in (offset, -offset))
        squares += np.mean(((ahead - behind) / (2 * step)) ** 2)
    return squares


def test_r1_and_its_gradient_equal_central_differences():
    rng = np.random.default_rng(2)
    weights, direction = rng.normal(0, 0.3, (2, 36 * 4))
    images = rng.uniform(-1, 1, (5, 3, 4, 3))

    def penalty(weights):
        x = jnp.asarray(images, jnp.float32)
        return r1_penalty(lambda x: two_logits(jnp, weights, x), x)

    value, gradient = jax.value_and_grad(penalty)(jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(value, numeric_r1(weights, images), rtol=1e-5)
    ahead, behind = (numeric_r1(weights + s * 1e-4 * direction, images) for s in (1, -1))
    np.testing.assert_allclose(gradient @ direction, (ahead - behind) / 2e-4, rtol=1e-4)


def test_r1_of_bfloat16_is_a_float32_sum_over_pixels_and_a_mean_over_images():
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 3), jnp.bfloat16)
    slope = jnp.bfloat16(3)
    value = r1_penalty(lambda x: slope * x.reshape(6, -1), x)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 9 * 8 * 8 * 3)
