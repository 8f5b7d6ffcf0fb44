"""Quantization against float64 oracles: what is looked up, and who learns from which gradient."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vqjax.errors import FieldError
from vqjax.quantizers import (
    STATE,
    VectorQuantizer,
    codebook_loss,
    commitment_loss,
    count_codes,
    l2_normalize,
    nearest_code,
    perplexity,
    straight_through,
    usage,
)

CODES, WIDTH, DECAY = 6, 3, 0.9
MUTABLE = [STATE]


def vectors(*shape, seed=0, scale=1.0):
    values = np.random.default_rng(seed).normal(0, scale, (*shape, WIDTH))
    return jnp.asarray(values, jnp.float32)


def nearest(z, codebook):
    """Brute force in float64."""
    difference = np.asarray(z, np.float64)[:, None] - np.asarray(codebook, np.float64)
    return (difference**2).sum(-1).argmin(-1)


@functools.cache
def train_step(model):
    """One training call: (outputs, new state), compiled once for a quantizer."""

    @jax.jit
    def step(variables, z, seed):
        rngs = {"restart": jax.random.key(seed)}
        return model.apply(variables, z, train=True, rngs=rngs, mutable=MUTABLE)

    return step


def moving_average(codebook, count, started=True):
    """State of a quantizer whose codes are `codebook`, each a mean over `count` vectors."""
    count = jnp.asarray(count, jnp.float32)
    state = {"code_sum": codebook * count[:, None], "code_count": count}
    return {STATE: {**state, "started": jnp.asarray(started)}}


def codes_of(model, variables):
    return np.asarray(model.apply(variables, method="codes"))


def rows_in(rows, batch):
    """Whether each row is a vector of the batch."""
    return (np.asarray(rows)[:, None] == np.asarray(batch).reshape(-1, WIDTH)).all(-1).any(-1)


# Lookup.


def test_nearest_code_equals_brute_force():
    z, codebook = vectors(500, scale=3.0), vectors(40, seed=1, scale=3.0) + 5.0
    np.testing.assert_array_equal(nearest_code(z, codebook), nearest(z, codebook))
    half = z.astype(jnp.bfloat16)
    np.testing.assert_array_equal(nearest_code(half, codebook), nearest(half, codebook))


def test_quantizer_returns_the_nearest_code_in_place():
    model, z = VectorQuantizer(CODES, WIDTH), vectors(2, 4, 5)
    codebook = vectors(CODES, seed=1)
    z_q, codes, _, metrics = model.apply({"params": {"codebook": codebook}}, z)
    expected = nearest(z.reshape(-1, WIDTH), codebook)
    np.testing.assert_array_equal(codes.reshape(-1), expected)
    np.testing.assert_allclose(z_q.reshape(-1, WIDTH), codebook[expected], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        model.apply({"params": {"codebook": codebook}}, codes, method="embed"), codebook[codes]
    )
    frequency = np.bincount(expected, minlength=CODES) / 40
    entropy = -sum(p * np.log(p) for p in frequency if p)
    np.testing.assert_allclose(metrics["batch_perplexity"], np.exp(entropy), rtol=1e-5)


def test_bfloat16_latents_are_quantized_in_float32():
    model, codebook = VectorQuantizer(CODES, WIDTH), 1000 + vectors(CODES, seed=1)
    z = (1000 + vectors(50)).astype(jnp.bfloat16)
    z_q, codes, loss, metrics = model.apply({"params": {"codebook": codebook}}, z)
    assert z_q.dtype == jnp.bfloat16 and loss.dtype == jnp.float32
    np.testing.assert_array_equal(codes, nearest(z, codebook))
    exact = ((np.asarray(z, np.float64) - np.asarray(codebook, np.float64)[codes]) ** 2).mean()
    np.testing.assert_allclose(metrics["commitment_loss"], exact, rtol=1e-3)


def test_layer_norm_mode_compares_standardized_vectors():
    model, z = VectorQuantizer(CODES, WIDTH, latent_norm="layer"), vectors(30)
    codebook = vectors(CODES, seed=1)
    z_q, codes, _, _ = model.apply({"params": {"codebook": codebook}}, 7.0 * z + 3.0)
    x = np.asarray(z, np.float64)
    standard = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_array_equal(codes, nearest(standard, codebook))
    # The codes themselves are not normalized.
    np.testing.assert_allclose(z_q, codebook[codes], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_l2_mode_has_unit_codes_chosen_by_angle(update):
    model, codebook = VectorQuantizer(CODES, WIDTH, update, latent_norm="l2"), vectors(CODES)
    z = vectors(30, seed=1, scale=5.0)
    variables = {"params": {"codebook": codebook}}
    if update == "ema":
        variables = moving_average(codebook, np.full(CODES, 2.0))
    z_q, codes, _, _ = model.apply(variables, z)
    np.testing.assert_allclose(np.linalg.norm(codes_of(model, variables), axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(z_q, axis=-1), 1, rtol=1e-5)
    unit = np.asarray(codebook) / np.linalg.norm(codebook, axis=-1, keepdims=True)
    np.testing.assert_array_equal(codes, (np.asarray(z) @ unit.T).argmax(-1))
    np.testing.assert_array_equal(model.apply(variables, 9.0 * z)[1], codes)


def test_l2_normalize_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x)))(jnp.zeros((2, WIDTH)))
    assert np.all(np.isfinite(gradient)) and not np.any(l2_normalize(jnp.zeros(WIDTH)))


# Gradients.


def test_straight_through_gradient_is_the_identity():
    z, z_q, cotangent = vectors(4), vectors(4, seed=1), vectors(4, seed=2)
    out, pull_back = jax.vjp(straight_through, z, z_q)
    to_z, to_z_q = pull_back(cotangent)
    np.testing.assert_allclose(out, z_q, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(to_z, cotangent)
    assert not np.any(to_z_q)


@pytest.mark.parametrize("train", [False, True])
def test_straight_through_the_quantizer(train):
    model, z, cotangent = VectorQuantizer(CODES, WIDTH), vectors(2, 4), vectors(2, 4, seed=2)
    params = {"codebook": vectors(CODES, seed=1)}
    _, pull_back = jax.vjp(lambda p, z: model.apply({"params": p}, z, train)[0], params, z)
    to_params, to_z = pull_back(cotangent)
    np.testing.assert_array_equal(to_z, cotangent)
    assert not np.any(to_params["codebook"])


def test_losses_move_one_side_each():
    z, z_q = vectors(4), vectors(4, seed=1)
    expected = 2 * np.asarray(z - z_q) / z.size
    to_z, to_z_q = jax.grad(codebook_loss, argnums=(0, 1))(z, z_q)
    assert not np.any(to_z)
    np.testing.assert_allclose(to_z_q, -expected, rtol=1e-5)
    to_z, to_z_q = jax.grad(commitment_loss, argnums=(0, 1))(z, z_q)
    assert not np.any(to_z_q)
    np.testing.assert_allclose(to_z, expected, rtol=1e-5)


class Autoencoder(nn.Module):
    """A linear encoder in front of a quantizer."""

    quantizer: VectorQuantizer

    @nn.compact
    def __call__(self, x):
        return self.quantizer(nn.Dense(WIDTH, use_bias=False, name="encoder")(x))[2]


@pytest.mark.parametrize("beta", [0.25, 2.0])
def test_codes_learn_from_the_codebook_loss_and_the_encoder_from_beta_times_commitment(beta):
    x, kernel, codebook = vectors(20), vectors(WIDTH, seed=1), vectors(CODES, seed=2)
    params = {"encoder": {"kernel": kernel}, "quantizer": {"codebook": codebook}}
    model = Autoencoder(VectorQuantizer(CODES, WIDTH, beta=beta))
    loss, gradient = jax.value_and_grad(lambda p: model.apply({"params": p}, x))(params)

    x, kernel, codebook = (np.asarray(a, np.float64) for a in (x, kernel, codebook))
    z = x @ kernel
    codes = nearest(z, codebook)
    error = z - codebook[codes]
    np.testing.assert_allclose(loss, (1 + beta) * (error**2).mean(), rtol=1e-4)
    to_encoder = beta * 2 / error.size * x.T @ error
    np.testing.assert_allclose(gradient["encoder"]["kernel"], to_encoder, rtol=1e-3, atol=1e-6)
    to_codes = np.zeros_like(codebook)
    np.add.at(to_codes, codes, -2 / error.size * error)
    np.testing.assert_allclose(gradient["quantizer"]["codebook"], to_codes, rtol=1e-3, atol=1e-6)


def test_moving_averages_leave_the_encoder_the_commitment_loss_alone():
    model = VectorQuantizer(CODES, WIDTH, "ema", beta=0.5)
    variables, z = moving_average(vectors(CODES, seed=1), np.ones(CODES)), vectors(10)
    assert "params" not in jax.eval_shape(model.init, jax.random.key(0), z)
    error = z - model.apply(variables, z)[0]
    gradient = jax.grad(lambda z: model.apply(variables, z)[2])(z)
    np.testing.assert_allclose(gradient, 0.5 * 2 * error / z.size, rtol=1e-3, atol=1e-6)


# Moving averages.


def test_moving_averages_equal_the_oracle():
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY)
    rng = np.random.default_rng(3)
    codebook, count = rng.normal(size=(CODES, WIDTH)), rng.uniform(1, 5, CODES)
    variables = moving_average(jnp.asarray(codebook, jnp.float32), count)
    total = codebook * count[:, None]
    for step in range(5):
        z = vectors(3, 4, seed=step)
        (z_q, codes, _, _), variables = train_step(model)(variables, z, step)
        flat, before = np.asarray(z, np.float64).reshape(-1, WIDTH), total / count[:, None]
        expected = nearest(flat, before)
        # A step looks up the codes that it found, and learns afterwards.
        np.testing.assert_array_equal(codes.reshape(-1), expected)
        np.testing.assert_allclose(z_q.reshape(-1, WIDTH), before[expected], rtol=1e-4, atol=1e-5)
        one_hot = np.eye(CODES)[expected]
        count = DECAY * count + (1 - DECAY) * one_hot.sum(0)
        total = DECAY * total + (1 - DECAY) * one_hot.T @ flat
        np.testing.assert_allclose(
            codes_of(model, variables), total / count[:, None], rtol=1e-4, atol=1e-5
        )


def test_a_code_out_of_use_stays_where_it_is():
    model = VectorQuantizer(2, WIDTH, "ema", decay=0.5)
    codebook = jnp.stack([jnp.zeros(WIDTH), jnp.full(WIDTH, 100.0)])
    variables = moving_average(codebook, np.ones(2))
    for step in range(200):
        _, variables = train_step(model)(variables, vectors(4), step)
    np.testing.assert_allclose(codes_of(model, variables)[1], codebook[1], rtol=1e-4)


def test_the_codebook_starts_at_vectors_of_the_first_batch():
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=1.0)
    z = vectors(40)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), z)
    assert not variables[STATE]["started"]
    (z_q, *_), variables = train_step(model)(variables, z, 0)
    assert rows_in(codes_of(model, variables), z).all()
    assert (
        np.isclose(np.asarray(z_q)[:, None], codes_of(model, variables), atol=1e-6)
        .all(-1)
        .any(-1)
        .all()
    )
    _, later = train_step(model)(variables, vectors(40, seed=1), 1)
    np.testing.assert_array_equal(codes_of(model, later), codes_of(model, variables))


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_evaluation_changes_no_state_and_draws_nothing(update):
    restarts = {"restart_below": 0.5} if update == "ema" else {}
    model = VectorQuantizer(CODES, WIDTH, update, **restarts)
    z = vectors(10)
    variables = jax.jit(model.init)(jax.random.key(0), z)
    _, after = jax.jit(lambda v: model.apply(v, z, mutable=MUTABLE))(variables)
    before = {name: variables[name] for name in after}
    jax.tree.map(np.testing.assert_array_equal, before, dict(after))


# Restarts.


def clusters_with_dead_codes():
    """Four living codes amid their vectors, two dead ones far away from any."""
    codebook = 10 * jnp.eye(CODES, WIDTH) * jnp.array([1, 1, 1, 0, 0, 0])[:, None]
    codebook = codebook.at[4:].set(jnp.array([[500.0] * WIDTH, [-500.0] * WIDTH]))
    return codebook, (codebook[:4] + 0.1 * vectors(8, 4)).reshape(-1, WIDTH)


def test_dead_codes_of_moving_averages_restart_at_vectors_of_the_batch():
    codebook, z = clusters_with_dead_codes()
    variables = moving_average(codebook, [5, 5, 5, 5, 0.1, 0.1])
    restarting = VectorQuantizer(CODES, WIDTH, "ema", DECAY, restart_below=0.5)
    plain = VectorQuantizer(CODES, WIDTH, "ema", DECAY)
    _, after = train_step(restarting)(variables, z, 0)
    _, without = train_step(plain)(variables, z, 0)
    new = codes_of(restarting, after)
    assert rows_in(new[4:], z).all() and np.any(new[4] != new[5])
    np.testing.assert_array_equal(new[:4], codes_of(plain, without)[:4])
    np.testing.assert_array_equal(codes_of(plain, without)[4:], codebook[4:])


@pytest.mark.parametrize("restart_below", [0.5, 3.0])
def test_a_restarted_code_that_finds_use_lives(restart_below):
    codebook, z = clusters_with_dead_codes()
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY, restart_below=restart_below)
    variables = moving_average(codebook, [8, 8, 8, 8, 0.1, 0.1])
    _, variables = train_step(model)(variables, z, 0)
    restarted = codes_of(model, variables)[4]
    # 8 vectors a batch at every code, the restarted one too: more than either threshold.
    z = jnp.tile(jnp.asarray(codes_of(model, variables)), (8, 1))
    for step in range(1, 4):
        _, variables = train_step(model)(variables, z, step)
        np.testing.assert_allclose(codes_of(model, variables)[4], restarted, rtol=1e-4)


def test_only_moving_averages_restart():
    with pytest.raises(FieldError, match=r"restart_below=0.5: 0 where learning is not 'ema'"):
        VectorQuantizer(CODES, WIDTH, restart_below=0.5)


# Statistics.


def test_usage_and_perplexity_in_closed_form():
    for used in (1, 3, 8):
        counts = count_codes(jnp.tile(jnp.arange(used), (2, 5)), 8)
        np.testing.assert_array_equal(counts, [10] * used + [0] * (8 - used))
        np.testing.assert_allclose(perplexity(counts), used, rtol=1e-5)
        np.testing.assert_allclose(usage(counts), used / 8)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(perplexity(jnp.asarray(800 * p)), 2**1.75, rtol=1e-5)
    assert usage(jnp.zeros(4)) == 0


@pytest.mark.parametrize("shape", [(5,), (5, 6), (5, 2, 3)])
def test_only_the_codes_of_valid_rows_are_counted(shape):
    codes = np.random.default_rng(0).integers(0, 4, shape)
    valid = np.array([True, False, True, False, True])
    counted = jax.jit(count_codes, static_argnums=1)(codes, 4, valid)
    np.testing.assert_array_equal(counted, np.bincount(codes[valid].ravel(), minlength=4))
    np.testing.assert_array_equal(count_codes(codes, 4, ~valid & valid), np.zeros(4))


def test_statistics_of_a_batch_split_over_devices_are_those_of_the_whole():
    assert jax.device_count() == 8
    model = VectorQuantizer(64, WIDTH, "ema", decay=DECAY, restart_below=0.95)
    z = vectors(16, 2, 2)
    variables = jax.jit(model.init)(jax.random.key(0), z)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    copied = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    one, many = train_step(model)(variables, z, 5), train_step(model)(copied, split, 5)
    assert not many[0][1].sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    changed = one[1][STATE]["code_count"] == 1
    assert 0 < np.sum(changed) < 64
