"""The transformer against a float64 oracle, and that its options change nothing but their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vqjax.nn.transformer import MLP, Transformer

LAYERS, HEADS, DIM, LENGTH = 2, 2, 6, 5


def random_sequence(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, LENGTH, DIM)), jnp.float32)


def randomized(model, seed=0):
    """Parameters large enough that none of them hides behind its initial value."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), random_sequence())
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape), p.dtype), shapes)


@functools.cache
def forward(norm, **fields):
    """The jitted model, of variables, sequence and mask."""
    return jax.jit(Transformer(LAYERS, HEADS, mlp_ratio=2, norm=norm, **fields).apply)


@functools.cache
def variables_of(norm):
    return randomized(Transformer(LAYERS, HEADS, mlp_ratio=2, norm=norm))


def unrolled(variables):
    """The parameters of scanned blocks as those of blocks one by one."""
    params = dict(variables["params"])
    blocks = params.pop("blocks")
    for i in range(LAYERS):
        params[f"block_{i}"] = jax.tree.map(lambda p, i=i: p[i], blocks)
    return {"params": params}


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def self_attention(x, params, mask):
    q, k, v = np.einsum("bnd,dthe->tbhne", x, params["qkv"]["kernel"]) + np.expand_dims(
        params["qkv"]["bias"], (1, 3)
    )
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(DIM // HEADS)
    weights = scipy.special.softmax(np.where(mask, logits, -np.inf), axis=-1)
    return np.einsum("bhne,hed->bnd", weights @ v, params["out"]["kernel"]) + params["out"]["bias"]


def mlp(x, params):
    h = x @ params["up"]["kernel"] + params["up"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ params["down"]["kernel"] + params["down"]["bias"]


def oracle(x, params, norm, mask):
    for i in range(LAYERS):
        block = params[f"block_{i}"]
        attend = functools.partial(self_attention, params=block["attention"], mask=mask)
        feed = functools.partial(mlp, params=block["mlp"])
        if norm == "pre":
            x = x + attend(layer_norm(x, block["norm_attention"]))
            x = x + feed(layer_norm(x, block["norm_mlp"]))
        else:
            x = layer_norm(x + attend(x), block["norm_attention"])
            x = layer_norm(x + feed(x), block["norm_mlp"])
    return layer_norm(x, params["norm"]) if norm == "pre" else x


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_scanned_and_unrolled_blocks_equal_the_oracle(norm):
    variables = variables_of(norm)
    assert ("norm" in variables["params"]) == (norm == "pre")
    x, mask = random_sequence(), np.random.default_rng(1).random((LENGTH, LENGTH)) < 0.5
    np.fill_diagonal(mask, True)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), unrolled(variables)["params"])
    expected = oracle(np.asarray(x, np.float64), params, norm, mask)
    out = forward(norm)(variables, x, mask)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    out = forward(norm, scan=False)(unrolled(variables), x, mask)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


def test_scanned_blocks_start_different():
    # Jitted, so that nothing else is computed.
    @jax.jit
    def draw(key):
        variables = Transformer(LAYERS, HEADS).init(key, random_sequence())
        return variables["params"]["blocks"]["mlp"]["up"]["kernel"]

    kernel = draw(jax.random.key(0))
    assert kernel.shape == (LAYERS, DIM, 4 * DIM) and not np.any(kernel[0] == kernel[1])
    assert 0.015 < np.std(kernel) < 0.025


@pytest.mark.parametrize("scan", [True, False])
def test_rematerialisation_changes_neither_values_nor_gradients(scan):
    # With dropout where it is dearest to get wrong: the recomputation has to draw the same again.
    layers = LAYERS if scan else 1
    plain = Transformer(layers, HEADS, 1, dropout=0.3 if scan else 0.0, scan=scan)
    variables, x = randomized(plain), random_sequence()

    def value_and_grad(model):
        def loss(variables):
            out = model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.value_and_grad(loss)).trace(variables)

    remat = value_and_grad(plain.clone(remat=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        value_and_grad(plain).lower().compile()(variables),
        remat.lower().compile()(variables),
    )
    assert "remat" in str(remat.jaxpr)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_causal_mask_keeps_the_future_out(norm):
    mask = np.tri(LENGTH, dtype=bool)
    apply = functools.partial(forward(norm), variables_of(norm), mask=mask)
    x = random_sequence()
    out = np.asarray(apply(x=x))
    for position in range(LENGTH):
        moved = np.any(apply(x=x.at[:, position, 0].add(1.0)) != out, axis=-1)
        np.testing.assert_array_equal(moved, np.broadcast_to(mask[:, position], moved.shape))


def test_dropout_acts_in_training_only():
    variables, x, mask = variables_of("pre"), random_sequence(), np.ones((LENGTH, LENGTH), bool)
    without = forward("pre")(variables, x, mask)
    np.testing.assert_array_equal(forward("pre", dropout=0.5)(variables, x, mask), without)

    @jax.jit
    def train(seed):
        model = Transformer(LAYERS, HEADS, mlp_ratio=2, dropout=0.5)
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(train(0), train(0))
    assert np.all(np.any(train(0) != train(1), axis=-1))


@pytest.mark.parametrize("scan", [True, False])
def test_every_branch_of_every_layer_draws_its_own_dropout(scan):
    # Branches that add 1, 2, 4 and 8 wherever they are kept: 16 sums occur if they are independent.
    model = Transformer(LAYERS, HEADS, dropout=0.5, norm="pre", scan=scan)
    x = jnp.zeros((1, 64, 32))
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), params)
    params["norm"]["scale"] += 1
    for i in range(LAYERS):
        block, at = (params["blocks"], i) if scan else (params[f"block_{i}"], ...)
        block["attention"]["out"]["bias"][at] = 4**i
        block["mlp"]["down"]["bias"][at] = 2 * 4**i
    rngs = {"dropout": jax.random.key(0)}
    out = jax.jit(lambda p: model.apply({"params": p}, x, train=True, rngs=rngs))(params)
    assert max(len(np.unique(row.round(4))) for row in np.asarray(out[0])) > 8
    assert len(np.unique(np.argsort(out[0], axis=-1), axis=0)) == 64


def test_mlp_drops_its_output_and_keeps_its_mean():
    layer = MLP(8, dropout=0.25)
    x = jnp.ones((4000, 3))
    rngs = {"dropout": jax.random.key(1)}

    @jax.jit
    def apply(key, x):
        variables = layer.init(key, x[:1])
        return layer.apply(variables, x, True, rngs=rngs), layer.apply(variables, x[:1])[0]

    out, expected = apply(jax.random.key(0), x)
    dropped = np.mean(out == 0)
    assert 0.23 < dropped < 0.27
    np.testing.assert_allclose(out.mean(0), expected, rtol=0.05)


def test_parameters_are_float32_in_bfloat16():
    model = Transformer(LAYERS, HEADS, dtype="bfloat16")
    x = random_sequence().astype(jnp.bfloat16)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_steps_with_a_cache_equal_the_whole_causal_pass(norm, scan):
    variables, x, mask = variables_of(norm), random_sequence(), np.tri(LENGTH, dtype=bool)
    expected = forward(norm)(variables, x, mask)
    model = Transformer(LAYERS, HEADS, mlp_ratio=2, norm=norm, scan=scan)

    @jax.jit
    def extend(x, start, cache):
        seen = jax.lax.dynamic_slice_in_dim(jnp.asarray(mask), start, x.shape[1])
        given = variables if scan else unrolled(variables)
        return model.apply(given, x, seen, cache, start, method="extend")

    # Two positions at once, as a condition in front of the codes is, then one by one.
    cache, parts = model.empty_cache(2, LENGTH, DIM), []
    for start, stop in ((0, 2), (2, 3), (3, 4), (4, 5)):
        # What the cache holds of positions that are not computed yet is of no account.
        cache = jax.tree.map(lambda leaf, at=start: leaf.at[..., at:].set(7.0), cache)
        part, cache = extend(x[:, start:stop], start, cache)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-4, atol=1e-5)
