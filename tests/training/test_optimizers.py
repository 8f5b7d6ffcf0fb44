import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.training.optimizers import (
    OptimizerSettings,
    accumulate,
    decay_mask,
    ema_update,
    forget_rows,
    make_optimizer,
    make_schedule,
    set_rows,
)


def config(**fields):
    defaults = {
        "name": "adamw",
        "learning_rate": 2e-3,
        "b1": 0.9,
        "b2": 0.96,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_steps": 10,
        "end_factor": 0.1,
        "clip_norm": None,
    }
    return ConfigDict({**defaults, **fields})


def settings(**fields):
    return OptimizerSettings(**config(**fields))


CLOSED_FORMS = {
    "cosine": lambda t, end: end + (1 - end) * 0.5 * (1 + np.cos(np.pi * t)),
    "linear": lambda t, end: 1 - t * (1 - end),
    "exponential": lambda t, end: end**t,
    "constant": lambda t, end: np.ones_like(t),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("warmup", [0, 10])
def test_schedule_is_its_closed_form(name, warmup):
    schedule = make_schedule(settings(schedule=name, warmup_steps=warmup), 60)
    steps = np.arange(80)
    progress = np.clip((steps - warmup) / (60 - warmup), 0, 1)
    expected = 2e-3 * CLOSED_FORMS[name](progress, 0.1)
    expected[:warmup] = 2e-3 * np.arange(warmup) / max(warmup, 1)
    actual = [schedule(jnp.int32(step)) for step in steps]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", ["linear", "exponential"])
def test_the_peak_is_held_until_the_decay_begins(name, warmup):
    fields = {"schedule": name, "warmup_steps": warmup, "hold_steps": 20}
    schedule = make_schedule(settings(**fields), 60)
    steps = np.arange(warmup, 80)
    progress = np.clip((steps - warmup - 20) / (60 - warmup - 20), 0, 1)
    expected = 2e-3 * CLOSED_FORMS[name](progress, 0.1)
    assert (expected[:21] == 2e-3).all() and expected[21] < 2e-3
    np.testing.assert_allclose([schedule(jnp.int32(step)) for step in steps], expected, rtol=1e-5)
    if warmup:
        np.testing.assert_allclose(schedule(jnp.int32(warmup // 2)), 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "corners"),
    [
        # Autoregressive and masked.
        (
            {"schedule": "exponential", "hold_steps": 80_000, "end_factor": 0.05},
            {0: 1e-4, 80_000: 1e-4, 790_000: np.sqrt(1e-4 * 5e-6), 1_500_000: 5e-6},
        ),
        (
            {"schedule": "linear", "hold_steps": 50_000, "end_factor": 0.0},
            {0: 1e-4, 50_000: 1e-4, 775_000: 5e-5, 1_500_000: 0.0},
        ),
    ],
)
def test_the_schedules_of_paper_001_at_their_corners(fields, corners):
    """Table 10."""
    given = settings(learning_rate=1e-4, warmup_steps=0, **fields)
    schedule = make_schedule(given, 1_500_000)
    rates = [schedule(jnp.int32(step)) for step in corners]
    np.testing.assert_allclose(rates, [*corners.values()], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamx"}, "valid: adam, adamw"),
        ({"schedule": "cosin"}, "valid: constant, cosine, exponential, linear"),
        ({"warmup_steps": 60}, "warmup_steps=60"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"hold_steps": 50}, "hold_steps=50: less than the 50 steps of the stage after"),
        ({"schedule": "exponential", "end_factor": 0.0}, "end_factor=0.0"),
        ({"end_factor": 2.0}, "end_factor=2.0"),
        ({"name": "adam"}, "use adamw"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        make_optimizer("prior.optimizer", config(**fields), 60)


def params_like_a_scanned_transformer():
    return {
        "blocks": {
            "attention": {"qkv": {"kernel": np.ones((3, 4, 3, 2, 2)), "bias": np.ones((3, 3, 2))}},
            "norm": {"scale": np.ones((3, 4)), "bias": np.ones((3, 4))},
        },
        "tokens": {"embedding": np.ones((7, 4))},
        "codebook": np.ones((7, 4)),
        "position_rows": np.ones((8, 4)),
    }


def test_weight_decay_pulls_on_matrices_alone_even_under_a_scan():
    params = params_like_a_scanned_transformer()
    fields = {"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.5}
    optimizer, _ = make_optimizer("prior.optimizer", config(**fields, weight_decay=0.1), 10)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, zero)
    expected = jax.tree.map(np.zeros_like, params)
    expected["blocks"]["attention"]["qkv"]["kernel"] -= 0.05
    expected["tokens"]["embedding"] -= 0.05
    jax.tree.map(np.testing.assert_allclose, updates, expected)
    assert sum(jax.tree.leaves(decay_mask(params))) == 2


def adam_step(g, m, v, t, rate, settings):
    m = settings.b1 * m + (1 - settings.b1) * g
    v = settings.b2 * v + (1 - settings.b2) * g**2
    m_hat, v_hat = m / (1 - settings.b1**t), v / (1 - settings.b2**t)
    return -rate * m_hat / (np.sqrt(v_hat) + settings.eps), m, v


@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_adam_with_clipping_is_its_equations(clip_norm):
    fields = config(name="adam", weight_decay=0.0, clip_norm=clip_norm, warmup_steps=2)
    optimizer, schedule = make_optimizer("prior.optimizer", fields, 20)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.zeros(5)}
    state = optimizer.init(params)
    m = v = np.zeros(5)
    for t in range(1, 7):
        g = rng.normal(size=5)
        updates, state = optimizer.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
        if clip_norm is not None:
            g = g * min(1, clip_norm / np.linalg.norm(g))
        expected, m, v = adam_step(g, m, v, t, float(schedule(t - 1)), fields)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-4, atol=1e-8)


def test_ema_is_its_recurrence_and_forgets_the_start():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(50, 3))
    ema = {"w": jnp.full(3, 1e3)}
    oracle = np.full(3, 1e3)
    update = jax.jit(ema_update, static_argnames="decay")
    for step, w in enumerate(weights):
        ema = update(ema, {"w": jnp.asarray(w, jnp.float32)}, decay=0.9, step=jnp.int32(step))
        decay = min(0.9, (1 + step) / (10 + step))
        oracle = decay * oracle + (1 - decay) * w
        np.testing.assert_allclose(ema["w"], oracle, rtol=1e-4, atol=1e-4)
    assert np.abs(ema["w"]).max() < 2


def masked_regression(params, model_state, batch, rng):
    """A loss over the unmasked terms of a batch; microbatches have unequal numbers of them."""

    def loss(params):
        error = (batch["x"] @ params["kernel"] - batch["y"]) ** 2
        weight = batch["mask"].sum()
        return (error * batch["mask"]).sum() / weight, weight

    (value, weight), grads = jax.value_and_grad(loss, has_aux=True)(params)
    model_state = {"seen": model_state["seen"] + len(batch["x"])}
    metrics = {"loss": value, "noise": jax.random.normal(rng)}
    return grads, model_state, metrics, weight


def regression(size=12):
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(size, 4))),
        "y": jnp.asarray(rng.normal(size=(size, 5))),
        "mask": jnp.asarray(rng.random((size, 5)) < np.linspace(0.2, 1, size)[:, None], float),
    }
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 5)))}
    return params, {"seen": jnp.int32(0)}, batch


@pytest.mark.parametrize("microbatches", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_whole_batch(microbatches):
    with jax.enable_x64(True):
        params, model_state, batch = regression()
        key = jax.random.key(0)
        whole = masked_regression(params, model_state, batch, key)
        grad_fn = functools.partial(masked_regression, params)
        run = jax.jit(accumulate, static_argnums=(0, 4))
        parts = run(grad_fn, model_state, batch, key, microbatches)
        np.testing.assert_allclose(parts[0]["kernel"], whole[0]["kernel"], rtol=1e-12)
        np.testing.assert_allclose(parts[2]["loss"], whole[2]["loss"], rtol=1e-12)
        assert parts[1]["seen"] == 12


def test_one_microbatch_is_a_plain_call_and_several_draw_apart():
    params, model_state, batch = regression()
    key = jax.random.key(3)
    plain = masked_regression(params, model_state, batch, key)
    one = accumulate(functools.partial(masked_regression, params), model_state, batch, key, 1)
    jax.tree.map(np.testing.assert_array_equal, one, plain[:3])

    def draw(model_state, batch, rng):
        return {}, model_state, {"x": jax.random.normal(rng) ** 2}, jnp.float32(1)

    two = accumulate(draw, model_state, batch, key, 2)[2]["x"]
    draws = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(2)]
    np.testing.assert_allclose(two, np.mean(np.square(draws)), rtol=1e-6)


def test_microbatches_split_each_devices_own_rows():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    batch = {"x": jax.device_put(jnp.arange(32.0).reshape(32, 1), sharding)}

    def grad_fn(model_state, batch, rng):
        return {}, {"rows": batch["x"][:, 0]}, {"sum": batch["x"].sum()}, jnp.float32(1)

    @jax.jit
    def run(batch):
        rows = {"rows": jnp.zeros(8)}
        return accumulate(grad_fn, rows, batch, jax.random.key(0), 4)[1:]

    state, metrics = run(batch)
    np.testing.assert_array_equal(state["rows"], np.arange(8) * 4 + 3)
    assert metrics["sum"] == np.arange(32).sum() / 4
    program = run.lower(batch).compile().as_text()
    assert "all-to-all" not in program
    assert "collective-permute" not in program


def test_a_batch_that_does_not_divide_is_refused():
    params, model_state, batch = regression()
    with pytest.raises(InputError, match="a batch of 12 does not divide into 5 microbatches"):
        grad_fn = functools.partial(masked_regression, params)
        accumulate(grad_fn, model_state, batch, jax.random.key(0), 5)


def test_the_optimizer_minimises():
    params, model_state, batch = regression()
    fields = config(learning_rate=0.1, clip_norm=1.0, weight_decay=0.0)
    optimizer, _ = make_optimizer("prior.optimizer", fields, 100)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grad_fn = functools.partial(masked_regression, params)
        grads, _, metrics = accumulate(grad_fn, model_state, batch, jax.random.key(0), 3)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics["loss"]

    losses = []
    for _ in range(100):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    x, y, mask = (np.asarray(batch[k], np.float64) for k in ("x", "y", "mask"))
    best = 0.0
    for j in range(5):
        rows = mask[:, j] > 0
        best += np.linalg.lstsq(x[rows], y[rows, j])[1].sum() if rows.sum() > 4 else 0.0
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] == pytest.approx(best / mask.sum(), rel=0.05)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_rows_that_are_forgotten_have_no_moments(name):
    """All others, and all other parameters, stay to the bit."""
    optimizer, _ = make_optimizer(
        "o", config(name=name, weight_decay=0.0, clip_norm=1.0, warmup_steps=0), 60
    )
    rng = np.random.default_rng(0)

    def draw():
        shapes = {"quantizer": {"codebook": (5, 3)}, "other": {"codebook": (5, 3), "bias": (5,)}}
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    params = draw()
    update = jax.jit(optimizer.update)
    _, state = update(draw(), optimizer.init(params), params)
    rows = jnp.array([False, True, False, True, False])
    forgotten = jax.jit(forget_rows, static_argnums=1)(state, "quantizer/codebook", rows)

    changed = []
    for (path, before), after in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(forgotten), strict=True
    ):
        before, after = np.array(before), np.asarray(after)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("quantizer/codebook"):
            assert before[rows].all()
            before[rows] = 0.0
            changed.append(path)
        np.testing.assert_array_equal(after, before)
    assert len(changed) == 2  # both moments

    vectors = jnp.full((5, 3), 7.0)
    new = set_rows(params, "quantizer/codebook", rows, vectors)
    wanted = np.array(params["quantizer"]["codebook"])
    wanted[rows] = 7.0
    np.testing.assert_array_equal(new["quantizer"]["codebook"], wanted)
    np.testing.assert_array_equal(new["other"]["codebook"], params["other"]["codebook"])
    with pytest.raises(KeyError, match="quantiser/codebook"):
        set_rows(params, "quantiser/codebook", rows, vectors)
