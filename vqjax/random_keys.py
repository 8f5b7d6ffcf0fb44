"""Random keys: the one place that all random numbers of a run come from."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def random_key(seed: int, purpose: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The random key of a purpose at a step; of nothing else, so that a resumed run repeats it."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)
