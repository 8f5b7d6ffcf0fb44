"""DiffAugment: what each augmentation does to an image, and how its draws are spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vqjax.discriminators.augmentation import diff_augment

HEIGHT, WIDTH = 16, 24
# Away from 0, so that what is uncovered shows.
IMAGES = np.random.default_rng(0).uniform(0.1, 1, (256, HEIGHT, WIDTH, 3)).astype(np.float32)


augment = jax.jit(diff_augment, static_argnums=2)
POLICY = ("color", "translation", "cutout")


@functools.cache
def augmented(*policy):
    return np.asarray(augment(jax.random.key(0), IMAGES, policy))


def test_color_is_an_affine_map_of_luminance_and_one_of_chroma_for_each_image():
    before, after = IMAGES.astype(np.float64), augmented("color").astype(np.float64)
    gray_before, gray_after = before.mean(-1), after.mean(-1)
    mean_before, mean_after = gray_before.mean((1, 2)), gray_after.mean((1, 2))
    centred_before = gray_before - mean_before[:, None, None]
    centred_after = gray_after - mean_after[:, None, None]
    brightness = mean_after - mean_before
    contrast = (centred_before * centred_after).sum((1, 2)) / (centred_before**2).sum((1, 2))
    chroma_before, chroma_after = before - gray_before[..., None], after - gray_after[..., None]
    chroma = (chroma_before * chroma_after).sum((1, 2, 3)) / (chroma_before**2).sum((1, 2, 3))
    saturation = chroma / contrast
    rebuilt = (
        chroma[:, None, None, None] * chroma_before
        + (contrast[:, None, None] * centred_before + mean_after[:, None, None])[..., None]
    )
    np.testing.assert_allclose(after, rebuilt, atol=1e-5)
    for draws, low, high in ((brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (saturation, 0, 2)):
        assert low - 1e-4 <= draws.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < draws.max() <= high + 1e-4
    assert abs(np.corrcoef([brightness, contrast, saturation])[~np.eye(3, dtype=bool)]).max() < 0.2


def test_translation_shifts_by_up_to_an_eighth_and_uncovers_zeros():
    seen = set()
    for before, after in zip(IMAGES, augmented("translation"), strict=True):
        rows, columns = np.nonzero(after.any(-1))
        top, left = rows.min(), columns.min()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        down = top if top else height - HEIGHT
        right = left if left else width - WIDTH
        assert height == HEIGHT - abs(down) and width == WIDTH - abs(right)
        kept = before[max(-down, 0) :, max(-right, 0) :][:height, :width]
        np.testing.assert_array_equal(after[top : top + height, left : left + width], kept)
        seen.add((int(down), int(right)))
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))


def test_cutout_blanks_one_rectangle_of_a_fifth_of_each_side_anywhere():
    tops, lefts = set(), set()
    for before, after in zip(IMAGES, augmented("cutout"), strict=True):
        hole = ~after.any(-1)
        rows, columns = np.nonzero(hole)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        assert hole[top:bottom, left:right].all() and hole.sum() == (bottom - top) * (right - left)
        # Whole but where the border cuts it: 16 * 0.2 and 24 * 0.2, rounded, are 3 and 5.
        assert bottom - top == 3 or (bottom - top < 3 and (top == 0 or bottom == HEIGHT))
        assert right - left == 5 or (right - left < 5 and (left == 0 or right == WIDTH))
        np.testing.assert_array_equal(after[~hole], before[~hole])
        tops.add(int(top))
        lefts.add(int(left))
    assert {0, HEIGHT - 2} <= tops and {0, WIDTH - 3} <= lefts


def test_draws_differ_between_images_and_keys_and_not_between_calls():
    images = jnp.broadcast_to(IMAGES[0], (8, HEIGHT, WIDTH, 3))
    first = augment(jax.random.key(1), images, POLICY)
    assert len({image.tobytes() for image in np.asarray(first)}) == 8
    np.testing.assert_array_equal(first, augment(jax.random.key(1), images, POLICY))
    assert not np.array_equal(first, augment(jax.random.key(2), images, POLICY))
    np.testing.assert_array_equal(diff_augment(jax.random.key(1), images, ()), images)


def test_gradient_reaches_what_is_seen_and_nothing_else():
    def total(images):
        return diff_augment(jax.random.key(3), images, ("translation", "cutout")).sum()

    images = jnp.asarray(IMAGES[:16])
    value, gradient = jax.jit(jax.value_and_grad(total))(images)
    assert set(np.unique(gradient)) == {0.0, 1.0}
    # The map is linear: its gradient times the images is its value.
    np.testing.assert_allclose((gradient * images).sum(), value, rtol=1e-5)


def test_a_sharded_batch_gives_the_same_images():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(IMAGES[:8], NamedSharding(mesh, PartitionSpec("data")))
    whole = augment(jax.random.key(0), jnp.asarray(IMAGES[:8]), POLICY)
    result = augment(jax.random.key(0), sharded, POLICY)
    assert len(result.sharding.device_set) == 8
    np.testing.assert_allclose(result, whole, atol=1e-5)
