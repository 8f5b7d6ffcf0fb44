"""DiffAugment: differentiable augmentation of the images that a discriminator is given.

Source: Zhao et al. 2020, sections 3.2 and 4; ranges as in the authors' code, the hole of the
cutout as in projected GAN (Sauer et al. 2021).
"""

from collections.abc import Callable, Mapping
from typing import Literal

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Largest shift, and side of the hole, as shares of the image's side.
_TRANSLATION = 0.125
_CUTOUT = 0.2

Augmentation = Literal["color", "translation", "cutout"]
Images = Float[Array, "b h w 3"]


def diff_augment(key: Key[Array, ""], images: Images, policy: tuple[Augmentation, ...]) -> Images:
    """Images, each augmented at random by the policy's augmentations in their order.

    Args:
        key: each call with another one: real and fake images share no draws.
        images: [-1, 1]; the result may leave that range.
        policy: of "color" (brightness, saturation and contrast), "translation" by up to 12.5 % of
            each side, "cutout" of a fifth of each side. Uncovered pixels are 0, mid-grey.
    """
    for i, name in enumerate(policy):
        images = _AUGMENTATIONS[name](jax.random.fold_in(key, i), images)
    return images


def _color(key: Key[Array, ""], images: Images) -> Images:
    # In [0, 1) for brightness, saturation and contrast of each image.
    brightness, saturation, contrast = jax.random.uniform(
        key, (3, len(images), 1, 1, 1), images.dtype
    )
    images = images + brightness - 0.5
    gray = jnp.mean(images, axis=3, keepdims=True)
    images = (images - gray) * (2 * saturation) + gray
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translation(key: Key[Array, ""], images: Images) -> Images:
    sides = images.shape[1:3]
    margins = tuple(int(side * _TRANSLATION + 0.5) for side in sides)
    padded = jnp.pad(images, ((0, 0), *((margin, margin) for margin in margins), (0, 0)))
    highest = 2 * jnp.array([*margins, 0])
    corners = jax.random.randint(key, (len(images), 3), 0, highest + 1)

    def crop(image: Float[Array, "_ _ 3"], corner: Array) -> Float[Array, "h w 3"]:
        return jax.lax.dynamic_slice(image, corner, (*sides, 3))

    return jax.vmap(crop)(padded, corners)


def _cutout(key: Key[Array, ""], images: Images) -> Images:
    inside = []
    for axis_key, side in zip(jax.random.split(key), images.shape[1:3], strict=True):
        size = int(side * _CUTOUT + 0.5)
        # The hole's middle is anywhere in the image, so that its rim may be outside.
        middle = jax.random.randint(axis_key, (len(images), 1), 0, side + 1 - size % 2)
        offset = jnp.arange(side) - (middle - size // 2)
        inside.append((offset >= 0) & (offset < size))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(einops.rearrange(hole, "b h w -> b h w 1"), 0, images)


_AUGMENTATIONS: Mapping[Augmentation, Callable[[Key[Array, ""], Images], Images]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
