"""Quantization against float64 oracles: what is looked up, and who learns from which gradient."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vqjax import quantizers
from vqjax.errors import FieldError
from vqjax.quantizers import (
    STATE,
    VectorQuantizer,
    codebook_loss,
    commitment_loss,
    l2_normalize,
    straight_through,
)

CODES, WIDTH, DECAY = 6, 3, 0.9

# Compiled, as most of the operations of an eager call would be one by one.
nearest_code = jax.jit(quantizers.nearest_code)


def vectors(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (*shape, WIDTH)).astype(np.float32)


def nearest(z, codebook):
    """Brute force in float64."""
    difference = np.asarray(z, np.float64)[:, None] - np.asarray(codebook, np.float64)
    return (difference**2).sum(-1).argmin(-1)


@functools.cache
def _lookup(model):
    @jax.jit
    def run(variables, z):
        z_q, codes, loss, metrics = model.apply(variables, z)
        embedded = model.apply(variables, codes, method="embed")
        return {
            "z_q": z_q,
            "codes": codes,
            "loss": loss,
            "metrics": metrics,
            "embedded": embedded,
            "codebook": model.apply(variables, method="codes"),
        }

    return run


def lookup(model, variables, z):
    """What a quantizer gives for vectors, its codebook, and the vectors of the codes."""
    return SimpleNamespace(**jax.tree.map(np.asarray, _lookup(model)(variables, z)))


def gradient_codebook(codebook):
    return {"params": {"codebook": codebook}}


def moving_average(codebook, count, started=True):
    """State of a quantizer whose codes are `codebook`, each a mean over `count` vectors."""
    count = np.asarray(count, np.float32)
    state = {"code_sum": np.float32(codebook * count[:, None]), "code_count": count}
    return {STATE: {**state, "started": np.asarray(started)}}


@functools.cache
def train_step(model):
    """One training call: (outputs, new state), compiled once for a quantizer."""

    @jax.jit
    def step(variables, z, seed):
        rngs = {"restart": jax.random.key(seed)}
        return model.apply(variables, z, train=True, rngs=rngs, mutable=[STATE])

    return step


def codes_of(variables):
    """The codebook of moving averages."""
    state = variables[STATE]
    return np.asarray(state["code_sum"]) / np.asarray(state["code_count"])[:, None]


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
    z, codebook = vectors(2, 4, 5), vectors(CODES, seed=1)
    out = lookup(VectorQuantizer(CODES, WIDTH), gradient_codebook(codebook), z)
    expected = nearest(z.reshape(-1, WIDTH), codebook)
    np.testing.assert_array_equal(out.codes.reshape(-1), expected)
    np.testing.assert_allclose(out.z_q.reshape(-1, WIDTH), codebook[expected], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.embedded, codebook[out.codes])
    frequency = np.bincount(expected, minlength=CODES) / 40
    entropy = -sum(p * np.log(p) for p in frequency if p)
    np.testing.assert_allclose(out.metrics["batch_perplexity"], np.exp(entropy), rtol=1e-5)


def test_bfloat16_latents_are_quantized_in_float32():
    codebook, z = 1000 + vectors(CODES, seed=1), (1000 + vectors(50)).astype(jnp.bfloat16)
    out = lookup(VectorQuantizer(CODES, WIDTH), gradient_codebook(codebook), z)
    assert out.z_q.dtype == jnp.bfloat16 and out.loss.dtype == np.float32
    np.testing.assert_array_equal(out.codes, nearest(z, codebook))
    exact = ((np.asarray(z, np.float64) - np.asarray(codebook, np.float64)[out.codes]) ** 2).mean()
    np.testing.assert_allclose(out.metrics["commitment_loss"], exact, rtol=1e-3)


def test_layer_norm_mode_compares_standardized_vectors():
    z, codebook = vectors(30), vectors(CODES, seed=1)
    model = VectorQuantizer(CODES, WIDTH, latent_norm="layer")
    out = lookup(model, gradient_codebook(codebook), 7.0 * z + 3.0)
    x = np.asarray(z, np.float64)
    standard = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_array_equal(out.codes, nearest(standard, codebook))
    # The codes themselves are not normalized.
    np.testing.assert_allclose(out.z_q, codebook[out.codes], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_l2_mode_has_unit_codes_chosen_by_angle(learning):
    model, codebook = VectorQuantizer(CODES, WIDTH, learning, latent_norm="l2"), vectors(CODES)
    z = vectors(30, seed=1, scale=5.0)
    variables = gradient_codebook(codebook)
    if learning == "ema":
        variables = moving_average(codebook, np.full(CODES, 2.0))
    out = lookup(model, variables, z)
    np.testing.assert_allclose(np.linalg.norm(out.codebook, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out.z_q, axis=-1), 1, rtol=1e-5)
    unit = codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)
    np.testing.assert_array_equal(out.codes, (z @ unit.T).argmax(-1))
    np.testing.assert_array_equal(lookup(model, variables, 9.0 * z).codes, out.codes)


@pytest.mark.parametrize(
    ("learning", "latent_norm"),
    [("gradient", "none"), ("gradient", "layer"), ("gradient", "l2"), ("ema", "none")],
)
def test_the_vectors_of_the_codes_are_the_quantized_ones(learning, latent_norm):
    """Which makes the decoded tokens of any tokenizer its reconstruction."""
    model, codebook = VectorQuantizer(CODES, WIDTH, learning, latent_norm=latent_norm), vectors(6)
    moving = moving_average(codebook, np.arange(1, 7))
    variables = moving if learning == "ema" else gradient_codebook(codebook)
    out = lookup(model, variables, vectors(30, seed=1, scale=5.0))
    assert len(np.unique(out.codes)) > 2
    np.testing.assert_allclose(out.z_q, out.embedded, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.embedded, out.codebook[out.codes])


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, 1 / 500),
        ({"latent_norm": "layer"}, 1.0),
        ({"init_scale": 0.05}, 0.05),
        ({"init_scale": 0.05, "latent_norm": "layer"}, 0.05),
    ],
)
def test_codes_start_uniform_within_their_scale(fields, bound):
    model = VectorQuantizer(500, WIDTH, **fields)
    codes = model.init(jax.random.key(0), jnp.ones((1, WIDTH)))["params"]["codebook"]
    assert 0.99 * bound < np.abs(codes).max() <= bound
    assert np.std(codes) == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_l2_normalize_has_a_finite_gradient_at_zero():
    run = jax.jit(jax.value_and_grad(lambda x: jnp.sum(l2_normalize(x))))
    total, gradient = run(np.zeros((2, WIDTH), np.float32))
    assert np.all(np.isfinite(gradient)) and total == 0


# Gradients.


@jax.jit
def _pulled_back(z, z_q, cotangent):
    out, pull_back = jax.vjp(straight_through, z, z_q)
    losses = [jax.grad(f, argnums=(0, 1))(z, z_q) for f in (codebook_loss, commitment_loss)]
    return out, *pull_back(cotangent), *losses


def test_straight_through_gradient_is_the_identity_and_losses_move_one_side_each():
    z, z_q, cotangent = vectors(4), vectors(4, seed=1), vectors(4, seed=2)
    out, to_z, to_z_q, of_codebook, of_commitment = _pulled_back(z, z_q, cotangent)
    np.testing.assert_allclose(out, z_q, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(to_z, cotangent)
    assert not np.any(to_z_q)

    expected = 2 * (z - z_q) / z.size
    assert not np.any(of_codebook[0])
    np.testing.assert_allclose(of_codebook[1], -expected, rtol=1e-5)
    np.testing.assert_allclose(of_commitment[0], expected, rtol=1e-5)
    assert not np.any(of_commitment[1])


@pytest.mark.parametrize("train", [False, True])
def test_straight_through_the_quantizer(train):
    model, cotangent = VectorQuantizer(CODES, WIDTH), vectors(2, 4, seed=2)

    @jax.jit
    def run(params, z, cotangent):
        _, pull_back = jax.vjp(lambda p, z: model.apply({"params": p}, z, train)[0], params, z)
        return pull_back(cotangent)

    to_params, to_z = run({"codebook": vectors(CODES, seed=1)}, vectors(2, 4), cotangent)
    np.testing.assert_array_equal(to_z, cotangent)
    assert not np.any(to_params["codebook"])


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
    run = jax.jit(jax.value_and_grad(lambda p, x: model.apply({"params": p}, x)))
    loss, gradient = run(params, x)

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

    def loss(z, variables):
        z_q, _, loss, _ = model.apply(variables, z)
        return loss, z_q

    gradient, z_q = jax.jit(jax.grad(loss, has_aux=True))(z, variables)
    np.testing.assert_allclose(gradient, 0.5 * 2 * (z - z_q) / z.size, rtol=1e-3, atol=1e-6)


# Moving averages.


def test_moving_averages_equal_the_oracle():
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY)
    rng = np.random.default_rng(3)
    codebook, count = rng.normal(size=(CODES, WIDTH)), rng.uniform(1, 5, CODES)
    variables = moving_average(codebook, count)
    total = codebook * count[:, None]
    for step in range(5):
        z = vectors(32, seed=step)
        (z_q, codes, _, _), variables = train_step(model)(variables, z, step)
        flat, before = np.asarray(z, np.float64), total / count[:, None]
        expected = nearest(flat, before)
        # A step looks up the codes that it found, and learns afterwards.
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_allclose(z_q, before[expected], rtol=1e-4, atol=1e-5)
        one_hot = np.eye(CODES)[expected]
        count = DECAY * count + (1 - DECAY) * one_hot.sum(0)
        total = DECAY * total + (1 - DECAY) * one_hot.T @ flat
        np.testing.assert_allclose(
            codes_of(variables), total / count[:, None], rtol=1e-4, atol=1e-5
        )


def test_a_code_out_of_use_stays_where_it_is():
    model = VectorQuantizer(2, WIDTH, "ema", decay=0.5)
    codebook = np.stack([np.zeros(WIDTH), np.full(WIDTH, 100.0)])
    variables = moving_average(codebook, np.ones(2))
    for step in range(200):
        _, variables = train_step(model)(variables, vectors(4), step)
    np.testing.assert_allclose(codes_of(variables)[1], codebook[1], rtol=1e-4)


def test_the_codebook_starts_at_vectors_of_the_first_batch():
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=1.0)
    z = vectors(40)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), z)
    assert not variables[STATE]["started"]
    (z_q, *_), variables = train_step(model)(variables, z, 0)
    codes = codes_of(variables)
    assert rows_in(codes, z).all()
    assert np.isclose(np.asarray(z_q)[:, None], codes, atol=1e-6).all(-1).any(-1).all()
    _, later = train_step(model)(variables, vectors(40, seed=1), 1)
    np.testing.assert_array_equal(codes_of(later), codes)


@pytest.mark.parametrize(
    ("learning", "restart_below"), [("gradient", 0.0), ("gradient", 0.5), ("ema", 0.5)]
)
def test_evaluation_changes_no_state_and_draws_nothing(learning, restart_below):
    model = VectorQuantizer(CODES, WIDTH, learning, restart_below=restart_below)

    @jax.jit
    def run(key, z):
        variables = model.init(key, z)
        return variables, model.apply(variables, z, mutable=[STATE])[1]

    variables, after = run(jax.random.key(0), vectors(10))
    before = {name: variables[name] for name in after}
    jax.tree.map(np.testing.assert_array_equal, before, dict(after))
    assert bool(after) == (restart_below > 0)


# Restarts.


def clusters_with_dead_codes():
    """Four living codes amid their vectors, two dead ones far away from any."""
    codebook = 10 * np.eye(CODES, WIDTH, dtype=np.float32)
    codebook[3:] = [[0.0] * WIDTH, [500.0] * WIDTH, [-500.0] * WIDTH]
    return codebook, (codebook[:4] + 0.1 * vectors(8, 4)).reshape(-1, WIDTH)


def test_dead_codes_of_moving_averages_restart_at_vectors_of_the_batch():
    codebook, z = clusters_with_dead_codes()
    variables = moving_average(codebook, [5, 5, 5, 5, 0.1, 0.1])
    restarting = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY, restart_below=0.5)
    plain = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY)
    _, after = train_step(restarting)(variables, z, 0)
    _, without = train_step(plain)(variables, z, 0)
    new = codes_of(after)
    assert rows_in(new[4:], z).all() and np.any(new[4] != new[5])
    np.testing.assert_array_equal(new[:4], codes_of(without)[:4])
    np.testing.assert_allclose(codes_of(without)[4:], codebook[4:], rtol=1e-6)


@pytest.mark.parametrize("restart_below", [0.5, 3.0])
def test_a_restarted_code_that_finds_use_lives(restart_below):
    codebook, z = clusters_with_dead_codes()
    model = VectorQuantizer(CODES, WIDTH, "ema", decay=DECAY, restart_below=restart_below)
    variables = moving_average(codebook, [8, 8, 8, 8, 0.1, 0.1])
    _, variables = train_step(model)(variables, z, 0)
    restarted = codes_of(variables)[4]
    # 8 vectors a batch at every code, the restarted one too: more than either threshold.
    z = np.tile(codes_of(variables), (8, 1))
    for step in range(1, 4):
        _, variables = train_step(model)(variables, z, step)
        np.testing.assert_allclose(codes_of(variables)[4], restarted, rtol=1e-4)


def test_dead_codes_of_a_gradient_are_noted_with_vectors_of_the_batch():
    """A parameter stays as it is in a forward pass; notes of one microbatch outlive the next."""
    codebook, z = clusters_with_dead_codes()
    model = VectorQuantizer(CODES, WIDTH, decay=DECAY, restart_below=0.5)
    count = np.float32([5, 5, 5, 5, 0.1, 0.5])
    notes = {"dead": np.zeros(CODES, bool), "restart_at": np.zeros((CODES, WIDTH), np.float32)}
    variables = {**gradient_codebook(codebook), STATE: {"code_count": count, **notes}}
    (_, codes, _, _), after = train_step(model)(variables, z, 0)
    np.testing.assert_array_equal(codes, nearest(z, codebook))
    state = after[STATE]
    used = np.bincount(codes, minlength=CODES)
    # Both fall below 0.5, and begin again with time to find use.
    np.testing.assert_array_equal(state["dead"], [False] * 4 + [True] * 2)
    expected = DECAY * count + (1 - DECAY) * used
    expected[4:] = 1.0
    np.testing.assert_allclose(state["code_count"], expected, rtol=1e-5)
    new = np.asarray(state["restart_at"])
    assert rows_in(new[4:], z).all() and not new[:4].any()

    _, later = train_step(model)({**gradient_codebook(codebook), **after}, z, 1)
    np.testing.assert_array_equal(later[STATE]["dead"], state["dead"])
    np.testing.assert_array_equal(later[STATE]["restart_at"], new)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"restart_below": -0.5}, "restart_below=-0.5: 0 or more"),
        ({"restart_below": float("nan")}, "restart_below=nan: 0 or more"),
        ({"num_codes": 0}, "num_codes=0: at least 1"),
        ({"code_dim": 0}, "code_dim=0: at least 1"),
        ({"beta": -0.1}, "beta=-0.1: 0 or more"),
        ({"decay": 1.1}, r"decay=1.1: a number in \[0, 1\]"),
    ],
)
def test_fields_out_of_their_range_are_refused(fields, message):
    with pytest.raises(FieldError, match=f"^{message}"):
        VectorQuantizer(**{"num_codes": CODES, "code_dim": WIDTH, **fields})


def test_a_batch_split_over_devices_gives_what_the_whole_gives():
    assert jax.device_count() == 8
    models = (
        VectorQuantizer(64, WIDTH, "ema", decay=DECAY, restart_below=0.95),
        VectorQuantizer(64, WIDTH),
    )

    @jax.jit
    def steps(states, z, seed):
        rngs = {"restart": jax.random.key(seed)}
        return [
            model.apply(state, z, train=True, rngs=rngs, mutable=[STATE])
            for model, state in zip(models, states, strict=True)
        ]

    codebook, z = vectors(64, seed=1), vectors(16, 2, 2)
    states = [moving_average(codebook, np.ones(64)), gradient_codebook(codebook)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    copied = jax.device_put(states, NamedSharding(mesh, PartitionSpec()))
    one, many = steps(states, z, 5), steps(copied, split, 5)
    for (_, codes, _, _), _ in many:
        assert not codes.sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    assert 0 < np.sum(one[0][1][STATE]["code_count"] == 1) < 64
