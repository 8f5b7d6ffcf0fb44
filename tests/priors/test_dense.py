"""What priors of whole code maps share: their size, embeddings, head, and how they are built."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from condition_positions import with_positions
from tiny_dense import (
    CELLS,
    CLASSES,
    CODES,
    DIM,
    IMAGES,
    NULL,
    PADDING,
    PRIORS,
    condition_of,
    forward,
    make,
    random_codes,
    shapes_of,
    tokens_of,
)

from vqjax.errors import InputError
from vqjax.nn.transformer import Transformer
from vqjax.priors import build_prior
from vqjax.runs.checkpoints import Checkpointer

NAMES = sorted(PRIORS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "millions"), [(768, 172), (1024, 305)])
def test_the_papers_sizes(name, dim, millions):
    """Paper 001, table 8."""
    prior = PRIORS[name](num_codes=1024, grid=(16, 16), num_ids=1000, dim=dim)
    assert (prior.num_layers, prior.num_heads, prior.dropout) == (24, 16, 0.1)
    params = shapes_of(prior)["params"]
    assert params["transformer"]["blocks"]["mlp"]["up"]["kernel"].shape == (24, dim, 4 * dim)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(count / 1e6 - millions) < 0.01 * millions


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("norm", "num_ids"), [("post", CLASSES), ("pre", 0)])
def test_every_parameter_learns(name, norm, num_ids):
    prior, variables = make(name, norm=norm, num_ids=num_ids)

    @jax.jit
    def gradients(params):
        def loss(params):
            rngs = {"mask": jax.random.key(0), "dropout": jax.random.key(1)}
            call = tokens_of(random_codes()), condition_of(prior), True
            return prior.apply({"params": params}, *call, method="loss", rngs=rngs)[0]

        return jax.grad(loss)(params)

    for path, leaf in jax.tree.leaves_with_path(gradients(variables["params"])):
        assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("norm", "num_ids"), [("post", CLASSES), ("pre", 0)])
def test_what_goes_into_the_transformer_and_what_is_made_of_its_output(name, norm, num_ids):
    prior, variables = make(name, norm=norm, num_ids=num_ids)
    codes, condition = random_codes(), condition_of(prior)

    @jax.jit
    def run(variables):
        def record(call, args, kwargs, where):
            out = call(*args, **kwargs)
            if isinstance(where.module, Transformer) and where.method_name == "__call__":
                calls.append((args[0], out))
            return out

        calls = []
        with nn.intercept_methods(record):
            logits = prior.apply(variables, jnp.asarray(codes), condition)
        return *calls.pop(), logits

    sequence, out, logits = (np.asarray(x, np.float64) for x in run(variables))
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    table, positions = params["code_embedding"]["embedding"], params["position"]["cell"]
    positions = positions.reshape(CELLS, DIM)
    parts = [table[codes]]
    if num_ids:
        parts.insert(0, params["condition_embedding"]["ids"]["embedding"][np.asarray(condition)])
    elif name == "autoregressive":
        parts.insert(0, np.broadcast_to(params["start"], (IMAGES, 1, DIM)))
    expected = np.concatenate(parts, 1)
    # Whether a place has the position of its own code or of the next one, that which it predicts.
    if name == "autoregressive":
        expected = expected[:, :-1]
    expected[:, -CELLS:] += positions
    if norm == "post":
        expected = layer_norm(expected, params["embedding_norm"])
    np.testing.assert_allclose(sequence, expected, rtol=1e-4, atol=1e-4)

    h = out[:, -CELLS:] @ params["head_linear"]["kernel"] + params["head_linear"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    h = layer_norm(h, params["head_norm"])
    expected = h @ table[:CODES].T + params["head_bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_a_condition_is_not_seen_and_its_first_id_is(name):
    prior, variables = make(name, num_ids=CLASSES)
    variables = with_positions(variables, 3)
    codes = random_codes()
    padded = np.concatenate([condition_of(prior), np.full((IMAGES, 2), PADDING, np.int32)], 1)
    table = variables["params"]["condition_embedding"]["ids"]["embedding"]

    def logits(shift):
        embedding = variables["params"]["condition_embedding"]
        moved = {**embedding, "ids": {"embedding": table.at[PADDING].add(shift)}}
        params = {**variables["params"], "condition_embedding": moved}
        return forward(prior, {"params": params}, codes, padded)

    np.testing.assert_array_equal(logits(1.0), logits(0.0))
    other = (padded + (padded < CLASSES)) % CLASSES
    other = np.where(padded == PADDING, PADDING, other)
    seen = np.abs(forward(prior, variables, codes, other) - logits(0.0)).max((0, 2))
    assert (seen > 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_null_condition_takes_the_place_of_others_in_training_only(name):
    # So near to 1 that it takes the place of all.
    dropping, variables = make(name, num_ids=CLASSES, condition_dropout=1 - 1e-6)
    keeping, _ = make(name, num_ids=CLASSES)

    @jax.jit
    def losses(variables):
        def loss(prior, condition, train):
            rngs = {"mask": jax.random.key(0), "dropout": jax.random.key(0)}
            call = variables, tokens_of(random_codes()), condition, train
            return prior.apply(*call, method="loss", rngs=rngs)[0]

        condition, null = condition_of(dropping), jnp.full((IMAGES, 1), NULL)
        pairs = [(dropping, condition), (keeping, null), (keeping, condition)]
        return [[loss(*pair, train) for pair in pairs] for train in (True, False)]

    (dropped, null, kept), (held_out, _, held_out_kept) = losses(variables)
    np.testing.assert_allclose(dropped, null, rtol=1e-5)
    np.testing.assert_allclose(held_out, held_out_kept, rtol=1e-5)
    assert abs(null - kept) > 1e-3


def test_dropout_acts_in_training_only():
    for name in NAMES:
        prior, variables = make(name, dropout=0.5)
        plain, _ = make(name)
        codes = random_codes()
        np.testing.assert_array_equal(
            forward(prior, variables, codes), forward(plain, variables, codes)
        )
        a, b = (forward(prior, variables, codes, train=True, seed=seed) for seed in (0, 1))
        assert np.abs(a - b).max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, r"config\.prior\.model\.num_heads=3: a divisor of dim=8"),
        ({"norm": "middle"}, "valid: post, pre"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"grid": (2, 2)}, r"config\.prior\.model\.grid"),
    ],
)
def test_impossible_fields_are_refused_by_name(fields, message):
    config = {"name": "masked", "dim": DIM, "num_heads": 2, **fields}
    with pytest.raises(InputError, match=message):
        build_prior("prior.model", config, CODES, (2, 3), 0)


@pytest.mark.parametrize("num_ids", [0, CLASSES])
def test_the_checkpoint_of_one_is_refused_by_the_other_in_one_line(num_ids, tmp_path):
    for ours, theirs in (NAMES, NAMES[::-1]):
        checkpointer = Checkpointer(tmp_path / ours)
        checkpointer.save(1, make(theirs, num_ids=num_ids)[1], {})
        with pytest.raises(InputError, match=r"is of another configuration: .*use the config") as e:
            checkpointer.restore(shapes_of(make(ours, num_ids=num_ids)[0]))
        assert "\n" not in str(e.value)
        checkpointer.close()
