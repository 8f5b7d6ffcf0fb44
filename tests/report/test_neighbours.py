"""Nearest training images of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vqjax.data import build_source, evaluation_batches
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.report import neighbours


def fake_network():
    """Features are the pixels of a shrunk image."""

    def apply(variables, images):
        features = jax.image.resize(images, (len(images), 4, 4, 3), "linear").reshape(-1, 48)
        return features, features[:, :10]

    return FeatureNetwork("fake", 48, 10, apply, {}, {})


def test_copies_of_training_images_show():
    data = tiny.finished_run().config.data
    training = build_source(data.source, "train", 16)
    rng = np.random.default_rng(0)
    copied = [3, 17]
    noise = rng.integers(0, 256, (38, 16, 16, 3), np.uint8)
    samples = np.concatenate([np.stack([training[i]["image"] for i in copied]), noise])
    held_out = build_source(data.source, "validation", 16)
    network = fake_network()
    found = neighbours.find(
        network,
        samples,
        [0, 1, 2],
        training,
        evaluation_batches(training, tiny.CONDITION, tiny.DATA, batch_size=8),
        evaluation_batches(held_out, tiny.CONDITION, tiny.DATA, batch_size=4),
        31,
    )
    assert (found.scanned, found.available, found.held_out) == (24, 24, 7)
    for (sample, near), distance in zip(found.rows[:2], (0, 0), strict=False):
        assert near[0][1] == distance and near[0][0].uri == sample.uri
        distances = [d for _, d in near]
        assert distances == sorted(distances) and distances[1] > 0
    assert found.rows[2][1][0][1] > 0
    # What held-out images are at, by another way.
    images = np.stack([example["image"] for example in (*training, *held_out)])
    pool = np.asarray(network(jnp.asarray(images) / 127.5 - 1.0)[0], np.float64)
    apart = np.linalg.norm(pool[24:, None] - pool[None, :24], axis=-1).min(axis=1)
    assert found.medians[1] == pytest.approx(np.median(apart), rel=1e-5)
    assert found.low == pytest.approx(np.quantile(apart, 0.05), rel=1e-5)
    assert found.near == 2 / 40 and found.near_held_out == 1 / 7 and found.twins == 0
