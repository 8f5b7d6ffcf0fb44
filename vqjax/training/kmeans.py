"""K-means: codes that have the least mean squared distance to given vectors.

Source: Lloyd 1982; unused codes go to vectors drawn as k-means++ draws its first ones (Arthur and
Vassilvitskii 2007).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.parallel import BATCH_AXES
from vqjax.quantizers import count_codes, distance_parts, nearest_code, usage


class Clusters(NamedTuple):
    """Codes and what is nearest to them.

    Attributes:
        codes: the means of their vectors, but for those that were placed at last.
        counts: of the vectors nearest to each.
        distortion: mean over all vectors of the squared distance to the nearest code, before each
            iteration and at the end; it never rises.
        usage: at the same times, the fraction of the codes that are nearest to any vector.
    """

    codes: Float[Array, "k d"]
    counts: Float[Array, "k"]
    distortion: Float[Array, "times"]
    usage: Float[Array, "times"]


class _Assignment(NamedTuple):
    """The nearest code of each vector.

    Attributes:
        nearest: index of the code, of this device's vectors.
        squared: distance of these to it; exactly 0 where a vector lies on it.
        total: of each code's vectors, on all devices.
        counts: of them, on all devices.
        distortion: mean of the squared distance of all vectors.
    """

    nearest: Int[Array, "b m"]
    squared: Float[Array, "b m"]
    total: Float[Array, "k d"]
    counts: Float[Array, "k"]
    distortion: Float[Array, ""]


def kmeans(
    z: Float[Array, "b m d"],
    codes: Float[Array, "k d"],
    key: Key[Array, ""],
    iterations: int,
    mesh: Mesh,
    on_sphere: bool = False,
    parts: int | None = None,
) -> Clusters:
    """Lloyd's algorithm from given codes, with a new place for every code that is not in use.

    In each iteration such codes go to vectors that are drawn with a probability proportional to
    their squared distance from the nearest code. At the end those that still are not in use go one
    by one to the vector farthest from its code, so that none is left where there are at least k
    distinct vectors. Vectors stay on their devices, and what is drawn is the same on any number of
    them; distances between all vectors and all codes are never in memory at once.

    Args:
        z: vectors, float32, with the first axis over devices as that of a batch. Not finite ones
            make a distortion that is not finite.
        codes: to start from, float32.
        key: of the draws.
        iterations: at least 1.
        mesh: of `make_mesh`.
        on_sphere: whether the codes are to have length one, as the vectors then have: a mean is
            normalized.
        parts: in which a device compares its vectors with the codes, a divisor of m; None chooses.
    """

    def cluster(
        z: Float[Array, "c m d"], codes: Float[Array, "k d"], key: Key[Array, ""]
    ) -> Clusters:
        split = parts or distance_parts(len(z), z.shape[1], len(codes))

        def iterate(
            codes: Float[Array, "k d"], key: Key[Array, ""]
        ) -> tuple[Array, tuple[Array, Array]]:
            found = _assign(z, codes, split)
            new = _means(found, codes, on_sphere)
            unused = found.counts == 0
            new = jax.lax.cond(
                jnp.any(unused),
                lambda: jnp.where(unused[:, None], _drawn(z, unused, found.squared, key), new),
                lambda: new,
            )
            return new, (found.distortion, usage(found.counts))

        codes, (distortion, used) = jax.lax.scan(iterate, codes, jax.random.split(key, iterations))
        codes, counts, last = _fill(z, codes, _assign(z, codes, split))
        return Clusters(
            codes, counts, jnp.append(distortion, last), jnp.append(used, usage(counts))
        )

    whole = PartitionSpec()
    # Results are the same on all devices, which the check cannot see behind a gathering.
    return jax.shard_map(
        cluster,
        mesh=mesh,
        in_specs=(PartitionSpec(BATCH_AXES), whole, whole),
        out_specs=whole,
        check_vma=False,
    )(z, codes, key)


def _assign(z: Float[Array, "b m d"], codes: Float[Array, "k d"], parts: int) -> _Assignment:
    """The nearest codes, in parts."""
    size, width = z.shape[1] // parts, z.shape[2]

    def add(sums: Float[Array, "k c"], start: Int[Array, ""]) -> tuple[Array, tuple]:
        some = jax.lax.dynamic_slice_in_dim(z, start, size, axis=1).reshape(-1, width)
        nearest = nearest_code(some, codes)
        # From the difference, as what is left of |z|^2 - 2 z e + |e|^2 near 0 is rounding.
        squared = jnp.sum((some - codes[nearest]) ** 2, axis=1)
        # Sums over a code's vectors by a product, as in `VectorQuantizer`.
        one_hot = jax.nn.one_hot(nearest, len(codes), dtype=jnp.float32, axis=0)
        summed = jnp.column_stack([some, jnp.ones_like(squared), squared])
        total = jnp.einsum("kn,nc->kc", one_hot, summed, precision=jax.lax.Precision.HIGHEST)
        return sums + total, (nearest.reshape(-1, size), squared.reshape(-1, size))

    zeros = jnp.zeros((len(codes), width + 2))
    sums, found = jax.lax.scan(add, zeros, jnp.arange(parts) * size)
    sums = jax.lax.psum(sums, BATCH_AXES)
    total, counts, squared_sums = sums[:, :width], sums[:, width], sums[:, width + 1]
    nearest, squared = (jnp.moveaxis(x, 0, 1).reshape(z.shape[:2]) for x in found)
    return _Assignment(nearest, squared, total, counts, jnp.sum(squared_sums) / jnp.sum(counts))


def _means(found: _Assignment, codes: Float[Array, "k d"], on_sphere: bool) -> Float[Array, "k d"]:
    """Of each code's vectors; a code stays where there are none, or none on the sphere."""
    counts = found.counts[:, None]
    size = jnp.linalg.norm(found.total, axis=1, keepdims=True) if on_sphere else counts
    # Vectors that cancel out have no direction but that of rounding.
    there = (counts > 0) & (size > 1e-6 * counts)
    return jnp.where(there, found.total / jnp.where(there, size, 1.0), codes)


def _drawn(
    z: Float[Array, "b m d"],
    unused: Bool[Array, "k"],
    squared: Float[Array, "b m"],
    key: Key[Array, ""],
) -> Float[Array, "k d"]:
    """A vector for each unused code, drawn without replacement, far ones rather; others any."""
    rows = jax.lax.axis_index(BATCH_AXES) * len(z) + jnp.arange(len(z))
    # The greatest of logits with Gumbel noise are a draw from their softmax.
    noise = jax.vmap(lambda row: jax.random.gumbel(jax.random.fold_in(key, row), z.shape[1:2]))
    vectors = _greatest(jnp.log(squared) + noise(rows), z, len(unused))
    return vectors[jnp.clip(jnp.cumsum(unused) - 1, 0, len(vectors) - 1)]


def _greatest(
    score: Float[Array, "b m"], z: Float[Array, "b m d"], count: int
) -> Float[Array, "n d"]:
    """The vectors of the greatest scores on all devices, greatest first; of equals the first."""
    scores, places = jax.lax.top_k(score.reshape(-1), min(count, score.size))
    ours = jnp.column_stack([scores, z.reshape(-1, z.shape[-1])[places]])
    every = jax.lax.all_gather(ours, BATCH_AXES, tiled=True)
    return every[jax.lax.top_k(every[:, 0], min(count, len(every)))[1], 1:]


def _fill(
    z: Float[Array, "b m d"], codes: Float[Array, "k d"], found: _Assignment
) -> tuple[Float[Array, "k d"], Float[Array, "k"], Float[Array, ""]]:
    """Puts unused codes on the farthest vectors, one by one; codes, counts, distortion.

    Each lowers the distortion, so that it ends, also where it takes the only vector of another
    code, which then is the next one.
    """

    def unfinished(state: tuple) -> Bool[Array, ""]:
        _, _, _, counts, distortion, left = state
        return jnp.any(counts == 0) & (distortion > 0) & (left > 0)

    def place(state: tuple) -> tuple:
        codes, nearest, squared, counts, _, left = state
        code = jnp.argmin(counts)
        vector = _greatest(squared, z, 1)[0]
        to_it = jnp.sum((z - vector) ** 2, axis=-1)
        nearest = jnp.where(to_it < squared, code.astype(nearest.dtype), nearest)
        squared = jnp.minimum(squared, to_it)
        ours = jnp.append(count_codes(nearest, len(codes)), jnp.sum(squared))
        sums = jax.lax.psum(ours, BATCH_AXES)
        counts = sums[:-1]
        distortion = sums[-1] / jnp.sum(counts)
        return codes.at[code].set(vector), nearest, squared, counts, distortion, left - 1

    # Rounding is not to keep it going.
    state = (codes, *found[:2], found.counts, found.distortion, 4 * len(codes))
    codes, _, _, counts, distortion, _ = jax.lax.while_loop(unfinished, place, state)
    return codes, counts, distortion
