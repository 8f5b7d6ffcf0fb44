"""Random keys: the one place that all random numbers of a run come from."""

import zlib
from collections.abc import Sequence

import jax
from jaxtyping import Array, Int, Key


def purpose_key(seed: int, purpose: str) -> Key[Array, ""]:
    """The random key of a purpose; `random_key` folds its steps into it."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def random_key(seed: int, purpose: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The random key of a purpose at a step; of nothing else, so that a resumed run repeats it."""
    return jax.random.fold_in(purpose_key(seed, purpose), step)


def split_by_name(key: Key[Array, ""], names: Sequence[str]) -> dict[str, Key[Array, ""]]:
    """A key for each of the streams that a model draws from."""
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
