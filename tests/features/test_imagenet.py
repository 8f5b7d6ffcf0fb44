"""Images at the side that a network was trained on."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vqjax.features.imagenet import at_side

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 20, 13, 3)).astype(np.float32)


def flat(variables, images):
    return images.reshape(len(images), -1) @ variables


def test_images_are_resized_as_pillow_does_and_seen_by_the_network():
    resized = [
        [Image.fromarray(image[..., c]).resize((8, 8), Image.BILINEAR) for c in range(3)]
        for image in IMAGES
    ]
    # Pillow's is antialiased, too.
    pixels = np.moveaxis(np.array(resized), 1, -1)
    variables = RNG.normal(size=(192, 5)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(at_side(flat, 8))(variables, IMAGES), flat(variables, pixels), atol=1e-4
    )


def test_images_of_that_side_are_left_alone():
    variables, images = jnp.eye(192), jnp.asarray(IMAGES[:, :8, :8])
    np.testing.assert_allclose(at_side(flat, 8)(variables, images), flat(variables, images))


def test_products_are_of_float32_on_every_device():
    lowered = jax.jit(at_side(flat, 8)).lower(jnp.eye(192), IMAGES).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    # The network's own is the last one; those of resizing are so anyway.
    assert products and all("HIGHEST" in line for line in products)
