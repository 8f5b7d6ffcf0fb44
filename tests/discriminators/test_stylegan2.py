"""StyleGAN2's discriminator: its blur, the whole of it against float64, and its size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from discriminator_oracles import build, convolve, float64, leaky_relu, random_images

from vqjax.discriminators.stylegan2 import EqualizedConvolution, blur
from vqjax.errors import InputError
from vqjax.losses.adversarial import r1_penalty

# The last map is 4x6.
HEIGHT, WIDTH = 16, 24
MODEL = build({"name": "stylegan2", "channel_base": 96, "channel_max": 10})


@functools.cache
def variables(height=HEIGHT, width=WIDTH):
    """Kernels of deviation 1, and biases that are not zero."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(MODEL.init, train=True), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@functools.cache
def logits_of(dtype="float32"):
    model = MODEL.clone(dtype=dtype)
    return jax.jit(functools.partial(model.apply, train=True))


# The oracle: float64, sharing no code with the library.


def blurred(x, margin, stride):
    taps = np.array([1, 3, 3, 1]) / 8
    kernel = np.zeros((4, 4, x.shape[-1], x.shape[-1]))
    for channel in range(x.shape[-1]):
        kernel[:, :, channel, channel] = np.outer(taps, taps)
    return convolve(x, kernel, stride, margin)


def equalized(x, layer, stride=1, padding=0):
    kernel = layer["kernel"] / np.sqrt(layer["kernel"][..., 0].size)
    return convolve(x, kernel, stride, padding, layer.get("bias", 0.0))


def active(x):
    return np.sqrt(2) * leaky_relu(x)


def oracle(params, x):
    x = active(equalized(x, params["from_rgb"]))
    for block in (params[name] for name in sorted(params) if name.startswith("block")):
        y = active(equalized(x, block["conv_1"], padding=1))
        y = active(equalized(blurred(y, 2, 1), block["conv_2"], stride=2))
        # All positions, then every other one.
        x = (y + equalized(blurred(x, 1, 1), block["shortcut"])[:, ::2, ::2]) / np.sqrt(2)
    x = active(equalized(x, params["final_conv"], padding=1))
    x = active(equalized(x, params["dense"]))
    return equalized(x, params["logits"])[:, 0, 0]


def test_logits_equal_the_float64_oracle():
    images = random_images(1, 3, HEIGHT, WIDTH, 3)
    logits = logits_of()(variables(), images)
    assert logits.shape == (3, 1) and logits.dtype == jnp.float32
    expected = oracle(float64(variables()["params"]), float64(images))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("margin", "stride"), [(2, 1), (1, 2), (0, 1)])
def test_blur_equals_the_float64_oracle(margin, stride):
    x = random_images(2, 2, 10, 8, 3)
    expected = blurred(float64(x), margin, stride)
    np.testing.assert_allclose(blur(x, margin, stride), expected, atol=1e-6)


def test_blur_keeps_a_constant_and_takes_out_what_would_alias():
    constant = jnp.full((1, 12, 12, 1), 0.7)
    np.testing.assert_allclose(blur(constant, 0), 0.7, rtol=1e-6)
    checks = (-1.0) ** (np.arange(12)[:, None] + np.arange(12))
    np.testing.assert_allclose(blur(jnp.asarray(checks[None, ..., None]), 0), 0, atol=1e-6)
    # Halved without a blur, an edge that moves by a pixel jumps by two or by none.
    edges = jnp.stack([jnp.where(jnp.arange(16) < at, 1.0, 0.0) for at in (6, 7, 8)])
    edges = jnp.broadcast_to(edges[:, None, :, None], (3, 16, 16, 1))
    inside = blur(edges, 1, stride=2)[:, 2:-2, 1:-1].sum((1, 2, 3))
    np.testing.assert_allclose(np.diff(inside), inside[1] - inside[0], rtol=1e-6)


def test_every_pixel_reaches_the_logit():
    images = random_images(3, 1, HEIGHT, WIDTH, 3)
    gradient = jax.jit(jax.grad(lambda x: logits_of()(variables(), x).sum()))(images)
    assert (jnp.abs(gradient) > 0).all()


def numeric_r1(params, images, step=1e-5):
    """By central differences of the oracle."""
    offsets = step * np.eye(images[0].size).reshape(-1, 1, *images.shape[1:])
    sides = [oracle(params, (images + s * offsets).reshape(-1, *images.shape[1:])) for s in (1, -1)]
    slopes = (sides[0] - sides[1]).reshape(-1, len(images)) / (2 * step)
    return (slopes**2).sum(0).mean()


def test_r1_and_its_gradient_equal_central_differences_of_the_oracle():
    images = random_images(5, 2, 8, 8, 3)

    def penalty(params):
        return r1_penalty(lambda x: logits_of()({"params": params}, x), images)

    params = variables(8, 8)["params"]
    value, gradient = jax.jit(jax.value_and_grad(penalty))(params)
    exact, x, gradient = float64(params), float64(images), float64(gradient)
    np.testing.assert_allclose(value, numeric_r1(exact, x), rtol=1e-4)
    length = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    # Along itself the gradient's slope is its length.
    ahead, behind = (
        numeric_r1(jax.tree.map(lambda p, g, s=s: p + s * 1e-5 * g / length, exact, gradient), x)
        for s in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / 2e-5, length, rtol=1e-3)


def test_bfloat16_gives_nearly_the_same_float32_logits_and_float32_gradients():
    images = random_images(4, 8, HEIGHT, WIDTH, 3) * jnp.linspace(-2, 2, 8)[:, None, None, None]
    exact, rounded = (logits_of(dtype)(variables(), images) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == jnp.float32 and not np.array_equal(rounded, exact)
    assert np.corrcoef(rounded.ravel(), exact.ravel())[0, 1] > 0.99
    model = MODEL.clone(dtype="bfloat16")
    init = functools.partial(model.init, train=True)
    params = jax.eval_shape(init, jax.random.key(0), images)
    gradients = jax.eval_shape(jax.grad(lambda v: model.apply(v, images, train=True).sum()), params)
    assert {x.dtype.name for tree in (params, gradients) for x in jax.tree.leaves(tree)} == {
        "float32"
    }


def test_layers_keep_the_deviation_of_what_they_are_given():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 64))
    layer = EqualizedConvolution(64, 3)
    y, params = layer.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(y.std(), 1, rtol=0.1)
    np.testing.assert_allclose(params["params"]["kernel"].std(), 1, rtol=0.02)


def size(side):
    model = build({"name": "stylegan2"})
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    init = functools.partial(model.init, train=True)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    assert set(shapes) == {"params"}
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_number_of_parameters_is_that_of_configuration_f():
    """By hand; the authors' counts at 256 and 1024 pixels have one channel more in the last map."""
    widths = {256: 128, 128: 256, 64: 512, 32: 512, 16: 512, 8: 512, 4: 512}
    total = (3 + 1) * widths[256]
    for side in (256, 128, 64, 32, 16, 8):
        a, b = widths[side], widths[side // 2]
        total += (9 * a + 1) * a + (9 * a + 1) * b + a * b
    total += (9 * 512 + 1) * 512 + (16 * 512 + 1) * 512 + (512 + 1)
    assert size(256) == total == 28_864_129 - 9 * 512
    assert size(1024) == 29_012_513 - 9 * 512


@pytest.mark.parametrize(
    ("height", "width", "halvings"), [(8, 8, 1), (32, 32, 3), (96, 96, 4), (32, 72, 3)]
)
def test_last_map_has_four_to_seven_positions_along_the_shorter_side(height, width, halvings):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    init = functools.partial(MODEL.init, train=True)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert sum(name.startswith("block") for name in params) == halvings
    expected = height // 2**halvings, width // 2**halvings
    assert params["dense"]["kernel"].shape[:2] == expected
    assert 4 <= min(expected) < 8


@pytest.mark.parametrize(
    ("height", "width", "needed"), [(7, 16, 2), (36, 36, 8), (64, 44, 8), (100, 100, 16)]
)
def test_sides_that_cannot_be_halved_are_refused(height, width, needed):
    message = rf"^name='stylegan2': .* at least 8 and multiples of {needed} .* {height}x{width};"
    with pytest.raises(InputError, match=message):
        MODEL.check_size(height, width)
