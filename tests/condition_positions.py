"""Variables of a prior that is told one id, as those of one that is told several."""

import jax
import numpy as np


def with_positions(variables, length, seed=0):
    """A position for each id of a longer condition; the first is 0, as a single id has none."""
    embedding = variables["params"]["condition_embedding"]
    width = embedding["ids"]["embedding"].shape[1]
    position = np.random.default_rng(seed).normal(0, 0.5, (length, width)).astype(np.float32)
    position[0] = 0
    embedding = {**embedding, "position": jax.device_put(position)}
    return {**variables, "params": {**variables["params"], "condition_embedding": embedding}}
