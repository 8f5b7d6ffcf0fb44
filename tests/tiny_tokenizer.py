"""Parameters for the tests of tokenizers."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def large_parameters(model, images):
    """Parameters so large that codes vary and every part of the model has its weight.

    Only the shape of the images counts, and nothing is compiled.
    """
    rng = np.random.default_rng(0)

    def draw(path, p):
        if path[-1].key in ("bias", "scale"):
            return jnp.asarray((path[-1].key == "scale") + rng.normal(0, 0.2, p.shape), p.dtype)
        scale = 1.0 if path[-1].key == "codebook" else 1.5 * math.prod(p.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(0, scale, p.shape), p.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)
