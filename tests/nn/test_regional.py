"""Regional and dilated attention against a float64 oracle that works in the map's coordinates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vqjax.nn.regional import RegionalAttention, merge_groups, partition_groups

HEADS, DIM, REGION = 2, 4, 2
# Regions: 3 in a column, 2 in a row.
GRID = 6, 4

both = pytest.mark.parametrize("dilated", [False, True])


def attends(query, key, dilated):
    """Whether a cell sees another one: in its region, or at its place in another region."""
    part = np.mod if dilated else np.floor_divide
    return bool(np.all(part(query, REGION) == part(key, REGION)))


def random_map(channels=DIM):
    return np.random.default_rng(0).normal(0.3, 1, (2, *GRID, channels)).astype(np.float32)


@functools.cache
def layer(dilated):
    """Compiled, with parameters that hide nothing."""
    model = RegionalAttention(REGION, dilated, HEADS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), random_map())
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape), p.dtype), shapes)
    return jax.jit(functools.partial(model.apply, params)), params["params"]


def oracle(x, params, dilated):
    """One map (h, w, c), one query cell at a time."""
    cells = list(np.ndindex(GRID))
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * params["norm"]["scale"] + params["norm"]["bias"]
    qkv = np.einsum("hwd,dtne->thwne", y, params["attention"]["qkv"]["kernel"])
    qkv += params["attention"]["qkv"]["bias"][:, None, None]
    out = x + params["attention"]["out"]["bias"]
    for cell in cells:
        keys = tuple(zip(*(k for k in cells if attends(cell, k, dilated)), strict=True))
        for head in range(HEADS):
            query, key, value = (qkv[i, :, :, head] for i in range(3))
            weights = scipy.special.softmax(key[keys] @ query[cell] / np.sqrt(DIM / HEADS))
            out[cell] += weights @ value[keys] @ params["attention"]["out"]["kernel"][head]
    return out


@both
def test_a_layer_equals_the_oracle(dilated):
    apply, params = layer(dilated)
    exact = jax.tree.map(np.float64, params)
    expected = [oracle(x, exact, dilated) for x in np.float64(random_map())]
    np.testing.assert_allclose(apply(random_map()), expected, rtol=1e-4, atol=1e-5)


@both
def test_a_cell_reaches_its_group_and_nothing_else(dilated):
    apply, _ = layer(dilated)
    reach = jax.jit(jax.jacrev(lambda x: apply(x)[0]))(random_map()[:1])[..., 0, :, :, :]
    reached = np.any(reach != 0, axis=(2, 5))
    for query in np.ndindex(GRID):
        expected = [[attends(query, (i, j), dilated) for j in range(4)] for i in range(6)]
        np.testing.assert_array_equal(reached[query], expected)


@pytest.mark.parametrize("region", [1, 2])
@both
def test_groups_are_put_back_where_they_were(region, dilated):
    x = jnp.asarray(random_map(channels=1))
    groups = partition_groups(x, region, dilated)
    np.testing.assert_array_equal(merge_groups(groups, GRID, region, dilated), x)


@both
def test_a_fresh_layer_is_the_identity(dilated):
    x = random_map()
    y, variables = jax.jit(RegionalAttention(REGION, dilated, HEADS).init_with_output)(
        jax.random.key(0), x
    )
    np.testing.assert_array_equal(y, x)
    # From where it can learn: only the last projection is zero.
    assert np.all(jnp.any(variables["params"]["attention"]["qkv"]["kernel"] != 0, axis=(0, 3)))


@pytest.mark.parametrize("region", [3, 4, 8])
def test_a_map_that_regions_do_not_divide_is_refused(region):
    model = RegionalAttention(region, False, HEADS)
    with pytest.raises(ValueError, match=f"6x4 cells is not divided by regions of {region}x"):
        jax.eval_shape(model.init, jax.random.key(0), random_map())
