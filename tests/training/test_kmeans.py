"""K-means: a float64 oracle, what never rises, and that every code finds a vector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced import all_equations

from vqjax.parallel import batch_sharding, make_mesh
from vqjax.training.kmeans import kmeans

WIDTH = 3


def vectors(*shape, seed=0, unit=False):
    values = np.random.default_rng(seed).normal(0, 1, (*shape, WIDTH))
    if unit:
        values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return jnp.asarray(values, jnp.float32)


@functools.cache
def program(iterations, on_sphere=False, parts=None, mesh=None):
    mesh = mesh or make_mesh({"data": 1}, jax.devices()[:1])
    return jax.jit(lambda z, codes, key: kmeans(z, codes, key, iterations, mesh, on_sphere, parts))


def cluster(z, codes, iterations=6, seed=0, **how):
    found = program(iterations, **how)(z, codes, jax.random.key(seed))
    return jax.tree.map(np.asarray, found)


def measured(z, codes):
    """Mean squared distance to the nearest code, and the counts, in float64."""
    z, codes = (np.asarray(x, np.float64).reshape(-1, WIDTH) for x in (z, codes))
    squared = ((z[:, None] - codes) ** 2).sum(-1)
    return squared.min(1).mean(), np.bincount(squared.argmin(1), minlength=len(codes))


def lloyd(z, codes, iterations, on_sphere):
    """Codes and distortions in float64, where no code goes out of use."""
    z, codes = (np.asarray(x, np.float64).reshape(-1, WIDTH) for x in (z, codes))
    distortion = [measured(z, codes)[0]]
    for _ in range(iterations):
        nearest = ((z[:, None] - codes) ** 2).sum(-1).argmin(1)
        codes = np.stack([z[nearest == k].mean(0) for k in range(len(codes))])
        if on_sphere:
            codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        distortion.append(measured(z, codes)[0])
    return codes, distortion


@pytest.mark.parametrize("on_sphere", [False, True])
def test_where_all_codes_are_used_it_is_lloyds_algorithm(on_sphere):
    z = vectors(4, 30, unit=on_sphere)
    start = z[0, :7]
    found = cluster(z, start, on_sphere=on_sphere)
    codes, distortion = lloyd(z, start, 6, on_sphere)
    np.testing.assert_allclose(found.codes, codes, atol=1e-5)
    np.testing.assert_allclose(found.distortion, distortion, rtol=1e-5)
    np.testing.assert_array_equal(found.counts, measured(z, codes)[1])
    assert distortion[-1] < 0.8 * distortion[0] and np.all(found.usage == 1)
    if on_sphere:
        np.testing.assert_allclose(np.linalg.norm(found.codes, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("on_sphere", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_from_a_collapsed_codebook_all_codes_come_into_use(seed, on_sphere):
    """Nearly all codes are far off; the distortion falls at each iteration all the same."""
    z = vectors(4, 30, seed=seed, unit=on_sphere)
    start = jnp.full((40, WIDTH), 50.0).at[0].set(0.0)
    if on_sphere:
        start = jnp.zeros((40, WIDTH)).at[:, 0].set(1.0)
    found = cluster(z, start, seed=seed, on_sphere=on_sphere)
    distortion, counts = measured(z, found.codes)
    assert counts.min() >= 1 and found.usage[0] == 1 / 40 and found.usage[-1] == 1
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.distortion[-1], distortion, rtol=1e-4)
    assert np.all(np.diff(found.distortion) <= 1e-6)
    # About as good as from a start on vectors that were drawn.
    assert found.distortion[-1] < 1.5 * lloyd(z, z[1:3, :20], 6, on_sphere)[1][-1]


def test_each_of_as_many_distinct_vectors_gets_a_code():
    """Copies draw the same vector twice, and one iteration is not enough to find all."""
    distinct = vectors(12) * 100.0 ** np.arange(12)[:, None] ** 0.2
    z = distinct[np.random.default_rng(0).permutation(np.repeat(np.arange(12), 10))]
    for iterations in (1, 2):
        found = cluster(z.reshape(2, 60, WIDTH), jnp.zeros((12, WIDTH)), iterations)
        np.testing.assert_array_equal(found.counts, 10)
        np.testing.assert_allclose(np.sort(found.codes, 0), np.sort(distinct, 0), rtol=1e-5)


def test_it_ends_with_fewer_distinct_vectors_than_codes():
    z = jnp.tile(vectors(5), (6, 1)).reshape(2, 15, WIDTH)
    found = cluster(z, jnp.zeros((40, WIDTH)))
    assert np.sum(found.counts > 0) == 5 and np.sum(found.counts) == 30
    assert np.all(np.isfinite(found.codes)) and found.distortion[-1] == pytest.approx(0, abs=1e-10)


def test_opposite_vectors_have_no_mean_on_the_sphere():
    z = jnp.asarray([[[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]])
    found = cluster(z, jnp.asarray([[1.0, 0.0, 0.0]]), on_sphere=True)
    np.testing.assert_array_equal(found.codes, [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("parts", [2, 5, 30])
def test_parts_change_nothing(parts):
    z, start = vectors(4, 30), vectors(20, seed=1)
    whole, some = (cluster(z, start, parts=n) for n in (1, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, some)


def test_not_all_distances_are_in_memory_at_once():
    z = jax.ShapeDtypeStruct((64, 1024, WIDTH), jnp.float32)
    codes = jax.ShapeDtypeStruct((1024, WIDTH), jnp.float32)
    traced = jax.make_jaxpr(program(2))(z, codes, jax.random.key(0))
    shapes = [v.aval.shape for e in all_equations(traced.jaxpr) for v in e.outvars]
    assert max(np.prod(s) for s in shapes if 1024 in s and len(s) > 1 and s[-1] != 64) <= 2**24


@pytest.mark.parametrize("start", ["codes", "collapsed"])
def test_vectors_of_eight_devices_are_as_those_of_one(start):
    z = vectors(16, 30)
    codes = vectors(40, seed=1) if start == "codes" else jnp.full((40, WIDTH), 9.0)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    split = cluster(jax.device_put(z, batch_sharding(mesh)), codes, mesh=mesh)
    one = cluster(z, codes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split, one)


def test_a_vector_that_is_not_finite_shows():
    for value in (np.nan, np.inf):
        found = cluster(vectors(4, 30).at[1, 2, 0].set(value), vectors(20, seed=1))
        assert not np.isfinite(found.distortion[0])
