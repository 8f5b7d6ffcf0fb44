"""Spectral normalisation against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from discriminator_oracles import convolve, float64, random_images, spectral

from vqjax.discriminators.normalization import SpectralConvolution


@functools.cache
def spectral_layer():
    """A layer, an input of a single position, and initial variables."""
    layer, x = SpectralConvolution(6, 4), random_images(5, 1, 4, 4, 3)
    return layer, x, jax.jit(layer.init, static_argnames="train")(jax.random.key(0), x, train=False)


def test_spectral_kernel_starts_as_pytorch_s():
    _, _, variables = spectral_layer()
    kernel = variables["params"]["kernel"]
    bound = kernel[..., 0].size ** -0.5
    assert 0.98 * bound < jnp.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)


def test_power_iteration_finds_the_largest_singular_value():
    layer, x, variables = spectral_layer()
    apply = jax.jit(lambda v: layer.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for _ in range(100):
        variables = {**variables, **apply(variables)}
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    largest = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    expected = convolve(np.asarray(x, np.float64), kernel / largest, 1, 0)
    np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-4)


def test_gradient_of_a_spectral_kernel_holds_the_singular_vectors_fixed():
    layer, x, variables = spectral_layer()
    state = {"batch_stats": variables["batch_stats"]}

    def total(kernel):
        return jnp.sum(layer.apply({"params": {"kernel": kernel}, **state}, x, train=False))

    value, gradient = jax.value_and_grad(total)(variables["params"]["kernel"])
    # Eq. 12 of the paper; the normalised kernel's own gradient is the one patch that there is.
    params, averages = float64(variables["params"]), float64(variables["batch_stats"])
    normalised, after = spectral(params, averages)
    largest = params["kernel"].ravel()[0] / normalised.ravel()[0]
    right = params["kernel"] @ averages["left"]
    own = np.repeat(float64(x)[0][..., None], 6, -1)
    expected = (
        own - (own * normalised).sum() * right[..., None] / np.linalg.norm(right) * after["left"]
    )
    np.testing.assert_allclose(value, (own * normalised).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, expected / largest, rtol=1e-3, atol=1e-4)


def test_spectral_norm_keeps_its_power_iteration_in_training_only():
    layer, x, variables = spectral_layer()
    logits, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    same, unchanged = layer.apply(variables, x, train=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(same, logits)
    before, after, same = (stats["batch_stats"]["left"] for stats in (variables, state, unchanged))
    np.testing.assert_array_equal(before, same)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(jnp.linalg.norm(after), 1, rtol=1e-6)
