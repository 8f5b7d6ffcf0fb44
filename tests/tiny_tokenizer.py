"""Parameters for the tests of tokenizers."""

import math

import jax
import numpy as np


def large_parameters(model, images):
    """Parameters so large that codes vary and every part of the model has its weight.

    Only the shape of the images counts, and nothing is compiled.
    """
    rng = np.random.default_rng(0)

    def draw(path, p):
        name = path[-1].key
        if name in ("code_count", "started"):
            values = np.ones(p.shape)
        elif name in ("bias", "scale"):
            values = (name == "scale") + rng.normal(0, 0.2, p.shape)
        else:
            codes = name in ("codebook", "code_sum")
            values = rng.normal(0, 1.0 if codes else 1.5 * math.prod(p.shape[:-1]) ** -0.5, p.shape)
        return jax.device_put(values.astype(p.dtype))

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)
