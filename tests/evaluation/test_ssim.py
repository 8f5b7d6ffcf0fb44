"""SSIM against a float64 loop over windows, and where its value is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation.metrics.ssim import ssim

compiled = jax.jit(ssim)


def oracle(a, b):
    """Of one pair of images (h, w, c) in [-1, 1], window by window, with centred sums."""
    a, b = ((np.clip(i.astype(np.float64), -1, 1) + 1) / 2 for i in (a, b))
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(a.shape[2]):
        for row in range(a.shape[0] - 10):
            for column in range(a.shape[1] - 10):
                x, y = (i[row : row + 11, column : column + 11, c] for i in (a, b))
                mx, my = np.sum(window * x), np.sum(window * y)
                vx, vy = np.sum(window * (x - mx) ** 2), np.sum(window * (y - my) ** 2)
                covariance = np.sum(window * (x - mx) * (y - my))
                values.append(
                    (2 * mx * my + 0.01**2)
                    * (2 * covariance + 0.03**2)
                    / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
                )
    return np.mean(values)


def pairs(seed, n, h, w, c, noise):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:h, :w] / 8
    waves = np.stack([np.sin(rows + i) * np.cos(columns * (i + 1)) for i in range(c)], -1)
    images = np.clip(waves + 0.3 * rng.normal(size=(n, h, w, c)), -1, 1)
    return images.astype(np.float32), (images + noise * rng.normal(size=images.shape)).astype(
        np.float32
    )


@pytest.mark.parametrize("shape", [(13, 17, 3), (11, 20, 1)])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_equals_the_oracle(shape, noise):
    x, y = pairs(0, 2, *shape, noise)
    expected = [oracle(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(compiled(x, y), expected, atol=1e-5)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.99])
@pytest.mark.parametrize("amplitude", [0.0, 1e-4, 1e-3, 1e-2])
def test_nearly_constant_images_keep_their_digits(level, amplitude):
    rng = np.random.default_rng(1)
    x, y = (level + amplitude * rng.uniform(0, 1, (2, 1, 14, 14, 1))).astype(np.float32)
    np.testing.assert_allclose(compiled(x, y)[0], oracle(x[0], y[0]), atol=2e-6)


def test_an_edge_between_flat_halves_keeps_its_digits():
    x = np.ones((1, 12, 40, 1), np.float32)
    x[:, :, :20] = -1
    y = x + np.float32(1e-3) * np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(compiled(x, y)[0], oracle(x[0], y[0]), atol=2e-5)


def test_equal_images_score_one_and_noise_takes_away_from_it():
    x, _ = pairs(3, 1, 24, 24, 3, 0.0)
    noise = np.random.default_rng(4).normal(size=x.shape)
    levels = np.array([0, 0.02, 0.1, 0.5, 2.0])[:, None, None, None]
    scores = np.asarray(compiled(np.repeat(x, 5, 0), (x + levels * noise).astype(np.float32)))
    np.testing.assert_allclose(scores[0], 1, atol=1e-6)
    assert (np.diff(scores) < 0).all()


def test_flat_images_differ_by_luminance_alone():
    # Levels 0 and 1 of 1: 2 * 0 * 1 + C1 over 0 + 1 + C1.
    black, white = -jnp.ones((1, 11, 11, 3)), jnp.ones((1, 11, 11, 3))
    np.testing.assert_allclose(compiled(black, white), 1e-4 / (1 + 1e-4), rtol=1e-3)
    np.testing.assert_allclose(compiled(black, black), 1, rtol=1e-6)


def test_inverted_contrast_is_negative():
    x, _ = pairs(5, 1, 16, 16, 1, 0.0)
    assert compiled(x, -x)[0] < -0.3


def test_symmetric_and_each_image_for_itself():
    x, y = pairs(6, 4, 15, 14, 3, 0.2)
    forth = compiled(x, y)
    np.testing.assert_allclose(forth, compiled(y, x), rtol=1e-6)
    np.testing.assert_allclose(forth[::-1], compiled(x[::-1].copy(), y[::-1].copy()), rtol=1e-6)
    np.testing.assert_allclose(
        forth, compiled(*(np.swapaxes(i, 1, 2).copy() for i in (x, y))), rtol=1e-5
    )


def test_values_beyond_the_range_are_clipped():
    x, y = pairs(7, 1, 12, 12, 1, 1.5)
    assert np.abs(y).max() > 1.5
    np.testing.assert_array_equal(compiled(x, y), compiled(x, np.clip(y, -1, 1)))


def test_float32_result_of_bfloat16_and_a_finite_gradient_for_equal_images():
    x, y = pairs(8, 1, 12, 12, 3, 0.1)
    assert compiled(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)).dtype == jnp.float32
    gradient = jax.jit(jax.grad(lambda a, b: ssim(a, b).sum()))(x, x)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e-4


def test_small_images_are_refused():
    x = jnp.zeros((1, 10, 64, 3))
    with pytest.raises(InputError, match="10x64, expected at least 11x11"):
        ssim(x, x)
