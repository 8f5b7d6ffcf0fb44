"""What the tests of tokenizers share: parameters, and all that a model makes of images."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_images(height, width, batch=1, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3))
    return values.astype(np.float32)


def large_parameters(model, images):
    """Parameters so large that codes vary and every part of the model has its weight.

    Only the shape of the images counts, and nothing is compiled.
    """
    rng = np.random.default_rng(0)

    def draw(path, p):
        name = path[-1].key
        if name in ("code_count", "started", "var"):
            values = np.ones(p.shape)
        elif name in ("bias", "scale"):
            values = (name == "scale") + rng.normal(0, 0.2, p.shape)
        else:
            codes = name in ("codebook", "code_sum")
            values = rng.normal(0, 1.0 if codes else 1.5 * math.prod(p.shape[:-1]) ** -0.5, p.shape)
        return jax.device_put(values.astype(p.dtype))

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _program(model):
    def record(call, args, kwargs, where):
        out = call(*args, **kwargs)
        if where.method_name == "features" and where.module.scope.path == ():
            recorded.append(out[0])
        return out

    def total(params, images, variables, pixel_weights, loss_weight):
        changed = {**variables, "params": params}
        with nn.intercept_methods(record):
            pixels, tokens, loss, _ = model.apply(changed, images)
        total = jnp.sum(pixel_weights * pixels**2) + loss_weight * loss
        return total, (pixels, tokens, loss, recorded.pop())

    @jax.jit
    def run(variables, images, pixel_weights, loss_weight):
        differentiate = jax.grad(total, argnums=(0, 1), has_aux=True)
        (to_params, to_images), (pixels, tokens, loss, features) = differentiate(
            variables["params"], images, variables, pixel_weights, loss_weight
        )
        encoded = model.apply(variables, images, method="encode")
        return {
            "to_params": to_params,
            "to_images": to_images,
            "images": pixels,
            "tokens": tokens,
            "loss": loss,
            "features": features,
            "to_pixels": model.apply(variables, features, method="to_pixels"),
            "encoded": encoded,
            "decoded": model.apply(variables, encoded, method="decode"),
        }

    recorded = []
    return run


def run_everything(model, variables, images, pixel_weights=None, loss_weight=1.0):
    """Of one program, which is compiled once for a model and a size of images.

    A model's outputs, the features inside, the tokens by `encode`, their image by `decode`, and the
    gradient of sum(pixel_weights * pixels^2) + loss_weight * loss by parameters and images.
    """
    weights = np.ones(images.shape, np.float32) if pixel_weights is None else pixel_weights
    run = _program(model)
    return jax.tree.map(np.asarray, run(variables, images, weights, np.float32(loss_weight)))


def assert_every_parameter_learns(to_params):
    for path, leaf in jax.tree.leaves_with_path(to_params):
        assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)


def assert_tokens_decode_to_the_reconstruction(out):
    jax.tree.map(np.testing.assert_array_equal, out["encoded"], out["tokens"])
    assert len(np.unique(out["tokens"].codes)) > 4
    np.testing.assert_allclose(out["decoded"], out["images"], rtol=1e-3, atol=1e-4)


def assert_last_layer(model, variables, out):
    """The images are `last_layer` of the features, which `to_pixels` applies."""
    kernel, bias = (variables["params"][model.last_layer][name] for name in ("kernel", "bias"))

    @jax.jit
    def convolve(features):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )
        return y + bias

    np.testing.assert_allclose(out["images"], convolve(out["features"]), atol=1e-4)
    np.testing.assert_allclose(out["images"], out["to_pixels"], atol=1e-4)
