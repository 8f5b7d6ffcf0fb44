"""Stackformer: what each logit depends on, its input and heads, its losses, its steps, its size."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_dense import nats_of
from tiny_stackformer import (
    CELLS,
    CODES,
    DIM,
    IMAGES,
    NULL,
    PADDING,
    TOKENS,
    condition_of,
    forward,
    make,
    random_tokens,
    shapes_of,
    tokens_of,
)

from vqjax.nn.transformer import Transformer
from vqjax.parallel import batch_sharding, make_mesh, state_shardings
from vqjax.priors.stackformer import StackformerPrior


@pytest.mark.parametrize(("layers", "millions"), [((18, 6), 307), ((36, 12), 607)])
def test_the_papers_sizes(layers, millions):
    """Section 4.1: K = 1,024, f = 8 at 256x256, a quarter masked; without a condition."""
    fields = {"num_codes": 1024, "grid": (32, 32)}
    if layers != (18, 6):
        fields |= {"num_layers": layers[0], "num_position_layers": layers[1]}
    prior = StackformerPrior(**fields)
    assert (prior.dim, prior.num_heads, prior.dropout) == (1024, 16, 0.1)
    params = shapes_of(prior, 768, 0)["params"]
    depths = [
        params[f"{name}_transformer"]["blocks"]["mlp"]["up"]["kernel"].shape[0]
        for name in ("code", "position")
    ]
    assert tuple(depths) == layers
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(count / 1e6 - millions) < 0.01 * millions


def test_a_code_sees_the_tokens_before_it_and_a_position_its_own_code_too():
    """And both the condition, but for its padding."""
    prior, variables = make(3)
    codes, positions = (jnp.asarray(x[:1]) for x in random_tokens())
    condition = jnp.array([[0, 1, PADDING]])
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=n), jnp.float32) for n in (CODES, CELLS)]

    @jax.jit
    def gradients(shifts):
        def logits(shifts):
            def shift(call, args, kwargs, where):
                out = call(*args, **kwargs)
                name = where.module.name
                if where.method_name != "__call__" or name not in shifts:
                    return out
                # A code is looked up twice, as an input of each transformer.
                return out + shifts[name][: out.shape[-2]]

            with nn.intercept_methods(shift):
                both = prior.apply(variables, codes, positions, condition)
            return [(x @ w)[0] for x, w in zip(both, weights, strict=True)]

        return jax.jacrev(logits)(shifts)

    shifts = {"code_embedding": TOKENS, "position": CELLS, "ids": 3}
    found = gradients({name: jnp.zeros((n, DIM)) for name, n in shifts.items()})
    before, own = np.tri(TOKENS, k=-1, dtype=bool), np.eye(TOKENS, dtype=bool)
    for moved, sees_own_code in zip(found, (False, True), strict=True):
        moved = {name: np.any(np.asarray(g) != 0, axis=-1) for name, g in moved.items()}
        expected = before | own if sees_own_code else before
        np.testing.assert_array_equal(moved["code_embedding"], expected)
        np.testing.assert_array_equal(moved["position"][:, positions[0]], before)
        assert moved["position"].sum() == before.sum()
        assert moved["ids"][:, :2].all() and not moved["ids"][:, 2].any()


@functools.cache
def watched(length):
    """Inputs and outputs of both transformers, and the logits, in float64."""
    prior, variables = make(length)

    @jax.jit
    def run(variables, codes, positions):
        def record(call, args, kwargs, where):
            out = call(*args, **kwargs)
            if isinstance(where.module, Transformer) and where.method_name == "__call__":
                calls.extend((args[0], out))
            return out

        calls = []
        with nn.intercept_methods(record):
            logits = prior.apply(variables, codes, positions, condition_of(length))
        return *calls, *logits

    return [np.asarray(x, np.float64) for x in run(variables, *random_tokens())]


@pytest.mark.parametrize("length", [0, 3])
def test_what_goes_into_both_transformers_and_what_is_made_of_their_outputs(length):
    sequence, hidden, current, located, code_logits, position_logits = watched(length)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), make(length)[1]["params"])
    (codes, positions), table = random_tokens(), params["code_embedding"]["embedding"]
    if length:
        ids, embedding = np.asarray(condition_of(length)), params["condition_embedding"]
        front = embedding["ids"]["embedding"][ids] + embedding["position"]
        # Of the second image all but the first id is padding, which comes before it.
        front[1] = np.roll(front[1], -1, axis=0)
    else:
        front = np.broadcast_to(table[CODES], (IMAGES, 1, DIM))
    cells = params["position"]["cell"].reshape(CELLS, DIM)
    tokens = table[codes[:, :-1]] + cells[positions[:, :-1]]
    expected = np.concatenate([front + params["sos_position"], tokens], axis=1)
    expected += params["sequence_position"]["place"]
    np.testing.assert_allclose(sequence, expected, rtol=1e-5, atol=1e-5)

    # Eq. 12: without the norm that the head begins with.
    hidden = hidden[:, -TOKENS:]
    np.testing.assert_allclose(current, hidden + table[codes], rtol=1e-5, atol=1e-5)
    outputs = {"code": (hidden, code_logits), "position": (located, position_logits)}
    for name, (x, logits) in outputs.items():
        assert list(params[f"{name}_transformer"]) == ["blocks"]
        norm, linear = params[f"{name}_head"]["norm"], params[f"{name}_head"]["linear"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        expected = (x * norm["scale"] + norm["bias"]) @ linear["kernel"] + linear["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0, 3])
def test_steps_with_caches_equal_the_whole_pass(length):
    prior, variables = make(length)
    codes, positions = random_tokens()
    condition = condition_of(length)

    @jax.jit
    def steps(variables, codes, positions):
        apply = functools.partial(prior.apply, variables)
        logits, hidden, caches = apply(condition, method="begin")
        zero = jnp.int32(0)
        located, caches = apply(hidden, codes[:, 0], zero, caches, method="locate")

        def step(caches, index):
            call = codes[:, index - 1], positions[:, index - 1], index - 1, condition, caches
            logits, hidden, caches = apply(*call, method="advance")
            call = hidden, codes[:, index], index, caches
            located, caches = apply(*call, method="locate")
            return caches, (logits, located)

        _, others = jax.lax.scan(step, caches, jnp.arange(1, TOKENS))
        return [
            jnp.concatenate([one[None], more]).swapaxes(0, 1)
            for one, more in zip((logits, located), others, strict=True)
        ]

    expected = forward(prior, variables, codes, positions, condition)
    for found, whole in zip(steps(variables, codes, positions), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnames=("prior", "length"))
def _losses(prior, variables, tokens, valid, length):
    key, condition = jax.random.key(0), condition_of(length)

    def loss(train, condition):
        call = variables, tokens, condition, train
        return prior.apply(*call, method="loss", rngs={"dropout": key})

    held_out = prior.apply(variables, tokens, condition, valid, key, method="held_out")
    null = jnp.full_like(condition, PADDING).at[:, :1].set(NULL)
    return loss(True, condition), loss(False, condition), held_out, loss(True, null)


def losses(prior, variables, codes, positions, length):
    """In training, without, held out; and in training under the null condition."""
    valid = np.array([True, False, True, True, False])
    found = _losses(prior, variables, tokens_of(codes, positions), valid, length)
    return valid, *jax.tree.map(np.asarray, found)


def test_losses_are_those_of_the_oracle_over_the_tokens_that_there_are():
    prior, variables = make(1, label_smoothing=0.3)
    codes, positions = random_tokens()
    positions[0, -1] = positions[2, -2:] = CELLS
    logits = forward(prior, variables, codes, positions, condition_of(1))
    there = positions < CELLS
    labels = codes, np.where(there, positions, 0)

    def terms(smoothing=0.0):
        nats = [nats_of(x, y, smoothing) for x, y in zip(logits, labels, strict=True)]
        hits = [x.argmax(-1) == y for x, y in zip(logits, labels, strict=True)]
        names = "code_nats", "position_nats", "code_accuracy", "position_accuracy"
        return dict(zip(names, (*nats, *hits), strict=True)) | {"nats_per_token": sum(nats)}

    valid, training, plain, held_out, _ = losses(prior, variables, codes, positions, 1)
    for (loss, number, metrics), smoothing in ((training, 0.3), (plain, 0.0)):
        assert number == there.sum() == IMAGES * TOKENS - 3
        smoothed = terms(smoothing)["nats_per_token"][there].mean()
        np.testing.assert_allclose(loss, smoothed, rtol=1e-4)
        expected = {name: x[there].mean() for name, x in terms().items()}
        assert metrics == pytest.approx(expected, rel=1e-4)
    counted = there & valid[:, None]
    found = {name: float(total) for name, (total, _) in held_out.items()}
    assert found == pytest.approx({n: x[counted].sum() for n, x in terms().items()}, rel=1e-4)
    assert all(count == counted.sum() for _, count in held_out.values())


def test_neither_the_order_of_tokens_nor_the_codes_of_no_cell_change_a_loss():
    prior, variables = make(1)
    codes, positions = random_tokens()
    positions[0, -1] = positions[2, -2:] = CELLS
    order = np.array([np.random.default_rng(i).permutation(TOKENS) for i in range(IMAGES)])
    others = np.where(positions == CELLS, (codes + 1) % CODES, codes)
    shuffled = [np.take_along_axis(x, order, axis=1) for x in (others, positions)]
    assert (shuffled[1] != positions).any(1).sum() > 3
    expected, found = (
        losses(prior, variables, *tokens, 1)[1:] for tokens in ((codes, positions), shuffled)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), expected, found)


def test_the_null_condition_takes_the_place_of_others_in_training_only():
    # So near to 1 that it takes the place of all.
    prior, variables = make(1, condition_dropout=1 - 1e-6)
    keeping, _ = make(1)
    _, dropped, plain, _, null = losses(prior, variables, *random_tokens(), 1)
    _, kept, kept_plain, _, _ = losses(keeping, variables, *random_tokens(), 1)
    np.testing.assert_allclose(dropped[0], null[0], rtol=1e-6)
    np.testing.assert_allclose(plain[0], kept_plain[0], rtol=1e-6)
    assert abs(dropped[0] - kept[0]) > 1e-3


def test_dropout_acts_in_training_only():
    prior, variables = make(dropout=0.5)
    call = variables, *random_tokens(), condition_of(0)
    for found, expected in zip(forward(prior, *call), forward(make()[0], *call), strict=True):
        np.testing.assert_array_equal(found, expected)
    a, b = (forward(prior, *call, train=True, seed=seed) for seed in (0, 1))
    for x, y in zip(a, b, strict=True):
        assert np.abs(x - y).max() > 1e-2


def loss_and_gradients(prior, length):
    """Of the variables and tokens; jitted."""

    @jax.jit
    def run(variables, tokens, condition):
        def loss(params):
            call = {"params": params}, tokens, condition, True
            return prior.apply(*call, method="loss", rngs={"dropout": jax.random.key(1)})[0]

        return jax.value_and_grad(loss)(variables["params"])

    return run


@pytest.mark.parametrize("length", [0, 2])
def test_every_parameter_learns(length):
    prior, variables = make(length)
    _, gradients = loss_and_gradients(prior, length)(
        variables, tokens_of(*random_tokens()), condition_of(length)
    )
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_a_step_on_eight_devices_is_that_on_one():
    prior, variables = make(1)
    tokens = jax.tree.map(lambda x: jnp.tile(x, (4, 1))[:16], tokens_of(*random_tokens()))
    condition = jnp.tile(condition_of(1), (4, 1))[:16]
    run = loss_and_gradients(prior, 1)
    expected = run(variables, tokens, condition)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = state_shardings(variables, mesh, fsdp_min_size=1)
    split = {axis for x in jax.tree.leaves(shardings) for axis in x.spec if axis}
    assert split == {"fsdp", "tensor"}
    batch = jax.device_put((tokens, condition), batch_sharding(mesh))
    found = run(jax.device_put(variables, shardings), *batch)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, found, expected)


def test_the_number_of_tokens_is_that_of_the_parameters():
    for length in (0, 1, 3):
        prior, variables = make(length)
        assert prior.apply(variables, condition_of(length), method="num_tokens") == TOKENS
