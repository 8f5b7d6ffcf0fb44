"""The entropy of the soft usage of codes: float64 oracles, where it leads, what it holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import NamedSharding, PartitionSpec
from traced import all_equations

from vqjax import quantizers
from vqjax.quantizers import VectorQuantizer, entropy, nearest_code, soft_usage

CODES, WIDTH = 6, 3


def vectors(*shape, seed=0, scale=1.0):
    values = np.random.default_rng(seed).normal(0, scale, (*shape, WIDTH))
    return jnp.asarray(values, jnp.float32)


def by_hand(z, codebook, temperature=1.0):
    """The usage in float64."""
    z, codebook = (np.asarray(x, np.float64).reshape(-1, WIDTH) for x in (z, codebook))
    distance = np.linalg.norm(z[:, None] - codebook, axis=-1)
    return scipy.special.softmax(-distance / temperature, axis=-1).mean(0)


def entropy_by_hand(*args):
    return scipy.special.entr(by_hand(*args)).sum()


@functools.cache
def with_gradients(temperature=1.0, parts=None):
    """Entropy of the usage and its gradients by vectors and codes, compiled."""

    def loss(z, codebook):
        return entropy(soft_usage(z, codebook, temperature, parts))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def slopes(function, x):
    """Central differences in float64."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[place] = 1e-5
        out[place] = (function(x + step) - function(x - step)) / 2e-5
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_entropy_and_gradients_equal_the_oracle(temperature):
    z, codebook = vectors(2, 2, 3), vectors(CODES, seed=1)
    value, (to_z, to_codes) = with_gradients(temperature)(z, codebook)
    exact_z, exact_codes = np.float64(z), np.float64(codebook)
    np.testing.assert_allclose(value, entropy_by_hand(z, codebook, temperature), rtol=1e-5)
    expected = slopes(lambda x: entropy_by_hand(x, exact_codes, temperature), exact_z)
    np.testing.assert_allclose(to_z, expected, rtol=1e-3, atol=1e-5)
    expected = slopes(lambda x: entropy_by_hand(exact_z, x, temperature), exact_codes)
    np.testing.assert_allclose(to_codes, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_change_nothing(parts):
    z, codebook = vectors(2, 2, 3), vectors(CODES, seed=1)
    whole, some = (with_gradients(parts=n)(z, codebook) for n in (1, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, some)


def entries(z, num_codes, parts=None):
    """Of the largest array of forward and backward pass that has an axis of codes."""
    codebook = jax.ShapeDtypeStruct((num_codes, z.shape[-1]), jnp.float32)
    program = jax.make_jaxpr(with_gradients(parts=parts))(z, codebook)
    found = [v.aval for e in all_equations(program.jaxpr) for v in e.outvars]
    return max(x.size for x in found if num_codes in x.shape and z.shape[-1] not in x.shape)


def test_a_part_of_the_distances_is_in_memory_at_a_time(monkeypatch):
    z = jax.ShapeDtypeStruct((4, 6, 6, WIDTH), jnp.float32)
    assert entries(z, 11, 1) == 4 * 36 * 11
    assert entries(z, 11, 9) == 4 * 4 * 11
    # As many parts as a part's size asks for, where so many divide a map.
    monkeypatch.setattr(quantizers, "_DISTANCES", 4 * 36 * 13 // 5 + 1)
    assert entries(z, 13) == 4 * 6 * 13
    monkeypatch.setattr(quantizers, "_DISTANCES", 1)
    assert entries(z, 17) == 4 * 17


def test_gradients_are_finite_at_a_code_and_infinitely_far_from_one():
    codebook = vectors(CODES).at[1].set(1e4)
    z = jnp.concatenate([codebook[:1], codebook[2:]])[None]
    value, gradients = with_gradients()(z, codebook)
    np.testing.assert_allclose(value, entropy_by_hand(z, codebook), rtol=1e-3)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert all(np.all(np.abs(g) < 10) for g in gradients)


def test_the_loss_of_a_quantizer_falls_by_gamma_times_the_entropy():
    z, codebook = vectors(2, 2, 3), vectors(CODES, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(model, z, codebook):
        _, _, loss, metrics = model.apply({"params": {"codebook": codebook}}, z)
        return loss, metrics

    plain, _ = loss(VectorQuantizer(CODES, WIDTH), z, codebook)
    model = VectorQuantizer(CODES, WIDTH, entropy=0.5, entropy_temperature=0.3)
    regularized, metrics = loss(model, z, codebook)
    expected = entropy_by_hand(z, codebook, 0.3)
    np.testing.assert_allclose(regularized, plain - 0.5 * expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["soft_perplexity"], np.exp(expected), rtol=1e-5)


@pytest.mark.parametrize(("gamma", "used"), [(0.0, 1), (1.0, CODES)])
def test_the_loss_brings_codes_into_use(gamma, used):
    """All vectors at one code at first, the others too far away to be any's nearest."""
    z = 0.5 * vectors(1, 64)
    start = vectors(CODES, seed=1, scale=0.1).at[1:].add(2.0)
    model = VectorQuantizer(CODES, WIDTH, entropy=gamma, entropy_temperature=1.0)

    def loss(codebook):
        return model.apply({"params": {"codebook": codebook}}, z)[2]

    @jax.jit
    def learned(codebook):
        return jax.lax.fori_loop(0, 400, lambda _, c: c - 0.3 * jax.grad(loss)(c), codebook)

    assert len(np.unique(nearest_code(z[0], start))) == 1
    assert len(np.unique(nearest_code(z[0], learned(start)))) == used


def test_a_batch_split_over_devices_has_one_usage_and_exchanges_no_vectors():
    z, codebook = vectors(8, 2, 3), vectors(CODES, seed=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    copied = jax.device_put(codebook, NamedSharding(mesh, PartitionSpec()))
    run = with_gradients(parts=3)
    one, many = run(z, codebook), run(split, copied)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, many)
    program = run.lower(split, copied).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program
    assert "all-to-all" not in program and "collective-permute" not in program
