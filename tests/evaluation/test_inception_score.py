"""Inception Score of predictions whose score is known, and against a loop over images."""

import math

import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation.metrics.inception_score import inception_score


def logits(seed, n, k, scale=2.0):
    return (scale * np.random.default_rng(seed).normal(size=(n, k))).astype(np.float32)


def oracle(rows):
    """exp of the mean divergence, one image at a time."""
    probabilities = []
    for row in rows.astype(np.float64):
        e = [math.exp(v - max(row)) for v in row]
        probabilities.append([v / sum(e) for v in e])
    marginal = np.mean(probabilities, axis=0)
    divergences = [
        sum(p * (math.log(p) - math.log(q)) for p, q in zip(row, marginal, strict=True))
        for row in probabilities
    ]
    return math.exp(np.mean(divergences))


def test_equals_the_oracle_over_parts_that_are_drawn():
    rows = logits(0, 23, 5)
    order = np.random.default_rng(3).permutation(23)
    # 23 in 4 parts: 6, 6, 6, 5.
    scores = [oracle(rows[order[a:b]]) for a, b in ((0, 6), (6, 12), (12, 18), (18, 23))]
    result = inception_score(rows, splits=4, seed=3)
    np.testing.assert_allclose(result.mean, np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(result.standard_deviation, np.std(scores), rtol=1e-10)


def test_one_answer_for_all_images_scores_one():
    result = inception_score(np.tile(logits(1, 1, 7), (50, 1)))
    np.testing.assert_allclose([result.mean, result.standard_deviation], [1, 0], atol=1e-12)


def test_sure_answers_over_all_classes_score_their_number():
    k = 6
    sure = 1e4 * np.tile(np.eye(k, dtype=np.float32), (20, 1))
    result = inception_score(sure, 1)
    np.testing.assert_allclose([result.mean, result.standard_deviation], [k, 0], atol=1e-9)
    # Half of the classes, half of the score; and no answer at all, none.
    np.testing.assert_allclose(inception_score(sure[np.arange(120) % 6 < 3], 1).mean, 3, rtol=1e-9)
    assert inception_score(np.zeros((40, k), np.float32)).mean == pytest.approx(1, abs=1e-12)


def test_images_in_the_order_of_their_classes_score_what_shuffled_ones_do():
    sure = np.repeat(1e4 * np.eye(6, dtype=np.float32), 100, axis=0)
    assert inception_score(sure).mean > 5.8


def test_score_is_between_one_and_the_number_of_classes_and_grows_with_certainty():
    scores = [inception_score(logits(2, 100, 8, scale)).mean for scale in (0.1, 1, 3, 10, 100)]
    assert np.all(np.diff(scores) > 0)
    assert scores[0] >= 1 and scores[-1] <= 8


def test_chunks_and_mapped_files_change_nothing_and_shifted_logits_nothing_much(tmp_path):
    rows = logits(3, 97, 11)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    whole = inception_score(rows, 3)
    assert inception_score(mapped, 3) == whole
    for chunk in (1, 8, 32):
        result = inception_score(mapped, 3, chunk=chunk)
        np.testing.assert_allclose(result.mean, whole.mean, rtol=1e-13)
    shifted = inception_score(rows.astype(np.float64) + 1e5, 3)
    np.testing.assert_allclose(shifted.mean, whole.mean, rtol=1e-9)


def test_bad_input_is_refused():
    rows = logits(4, 9, 3)
    with pytest.raises(InputError, match="9 images in 10 parts"):
        inception_score(rows)
    with pytest.raises(InputError, match="0 parts"):
        inception_score(rows, 0)
    rows[7, 1] = np.nan
    with pytest.raises(InputError, match="row 7 of the logits"):
        inception_score(rows, 3, chunk=2)
