"""Rejection sampling: how many candidates, their scores, and which of them are kept."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
import scipy.special

from vqjax.errors import InputError
from vqjax.samplers.rejection import (
    Rejection,
    best,
    candidate_groups,
    condition_groups,
    keep_best,
    score,
)


@pytest.mark.parametrize("acceptance", ["1", "0.5", "0.3", "0.35", "0.7", "0.1"])
def test_candidates_of_each_class_are_the_wanted_ones_over_the_acceptance(acceptance):
    wanted = {0: 2, 1: 1, 4: 21}
    labels = np.random.default_rng(0).permutation(np.repeat([*wanted], [*wanted.values()]))
    candidates = candidate_groups(labels, float(acceptance))
    expected = {k: math.ceil(n / Fraction(acceptance)) for k, n in wanted.items()}
    assert {k: np.sum(candidates == k) for k in set(candidates.tolist())} == expected


def test_images_are_grouped_by_their_whole_condition():
    conditions = np.array([[1, 2], [0, 2], [1, 2], [1, 0]], np.int32)
    distinct, groups = condition_groups(conditions)
    np.testing.assert_array_equal(distinct[groups], conditions)
    assert len(distinct) == 3 and groups.shape == (4,)
    distinct, groups = condition_groups(np.zeros((3, 0), np.int32))
    assert distinct[groups].shape == (3, 0) and not groups.any()


def test_best_of_each_class_equals_a_sort():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200).astype(np.int32)
    scores = rng.normal(size=200).astype(np.float32)
    wanted = np.array([3, 0, np.sum(labels == 2), 7, 1], np.int32)
    kept = best(*jax.device_put((scores, labels)), wanted, int(wanted.sum()))
    expected = []
    for label, n in enumerate(wanted):
        own = np.flatnonzero(labels == label)
        expected += list(own[np.argsort(-scores[own])][:n])
    np.testing.assert_array_equal(kept, expected)


def test_images_are_kept_in_the_order_in_which_they_were_drawn():
    """So that a part of them is not that of the best ones."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2], [30, 20])).astype(np.int32)
    candidates = candidate_groups(labels, 0.25)
    scores = np.random.default_rng(1).normal(size=len(candidates)).astype(np.float32)
    kept = keep_best(scores, candidates, labels)
    np.testing.assert_array_equal(candidates[kept], labels)
    for label in (0, 2):
        own = kept[labels == label]
        assert np.all(np.diff(own) > 0)
        left = np.setdiff1d(np.flatnonzero(candidates == label), own)
        assert scores[own].min() > scores[left].max()


def test_equal_scores_keep_the_exact_number():
    labels = np.array([1, 0, 1, 1, 0], np.int32)
    scores = np.zeros(5, np.float32)
    kept = np.asarray(best(*jax.device_put((scores, labels)), np.array([1, 2], np.int32), 3))
    assert sorted(labels[kept]) == [0, 1, 1]
    assert len(set(kept.tolist())) == 3


def test_scores_are_log_probabilities():
    rng = np.random.default_rng(0)
    logits = (5 * rng.normal(size=(7, 4))).astype(np.float32)
    labels = rng.integers(0, 4, 7).astype(np.int32)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    arguments = jax.device_put((logits, labels))
    expected = log_p[np.arange(7), labels]
    np.testing.assert_allclose(score(*arguments, "label"), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score(*arguments, "confidence"), log_p.max(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("acceptance", [0.0, -0.5, 1.01, float("nan")])
def test_acceptance_out_of_its_range(acceptance):
    with pytest.raises(InputError, match=r"in \(0, 1\], is needed"):
        Rejection(acceptance, lambda images: images[:, 0, 0])
