"""Neighbours, precision and recall against oracles that look at one pair at a time."""

import tracemalloc

import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation.metrics.manifold import knn_accuracy, nearest, precision_recall


def distance(a, b):
    return np.sqrt(np.sum((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def precision_oracle(x, members, k):
    radii = [
        sorted(distance(a, b) for j, b in enumerate(members) if j != i)[k - 1]
        for i, a in enumerate(members)
    ]
    return np.mean(
        [any(distance(a, b) <= r for b, r in zip(members, radii, strict=True)) for a in x]
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def modes(seed, centers, n):
    """n points around each center, near enough to each other that no ball reaches the next."""
    return np.concatenate(
        [center + 0.1 * normal(seed + i, n, 4) for i, center in enumerate(centers)]
    )


@pytest.mark.parametrize(("n", "m", "k"), [(33, 50, 6), (600, 1100, 2), (5, 4, 4)])
def test_neighbours_equal_a_sort(n, m, k):
    queries, references = normal(0, n, 5), normal(1, m, 5)
    distances, indices = nearest(queries, references, k)
    exact = np.linalg.norm(queries[:, None].astype(np.float64) - references[None], axis=-1)
    order = np.argsort(exact, axis=1)[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, np.take_along_axis(exact, order, 1), rtol=1e-12)


def test_neighbours_are_right_far_from_the_origin_and_copies_are_at_exactly_zero():
    references = 1e4 + normal(2, 200, 16)
    queries = np.concatenate([references[::-1], references + np.float32(2**-8)])
    distances, indices = nearest(queries, references, 2)
    np.testing.assert_array_equal(indices[:, 0], [*range(199, -1, -1), *range(200)])
    np.testing.assert_array_equal(distances[:200, 0], 0)
    near = [distance(a, b) for a, b in zip(queries[200:], references, strict=True)]
    np.testing.assert_allclose(distances[200:, 0], near, rtol=1e-9)
    assert (distances[:, 1] > 1).all()


def test_a_mapped_file_gives_the_same_digits_and_is_not_held_in_memory(tmp_path):
    x, y = normal(3, 40, 64), normal(4, 20_000, 64)
    np.save(tmp_path / "y.npy", y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    tracemalloc.start()
    theirs = nearest(x, mapped, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < y.nbytes / 2
    for ours, mine in zip(nearest(x, y, 3), theirs, strict=True):
        np.testing.assert_array_equal(ours, mine)
    assert precision_recall(x, y[:60], block=16) == precision_recall(x, mapped[:60], block=16)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [5, 1000])
def test_precision_and_recall_equal_the_oracle(k, block):
    x, y = normal(5, 40, 3), 0.7 + 0.6 * normal(6, 30, 3)
    result = precision_recall(x, y, k, block)
    assert result.precision == precision_oracle(x, y, k)
    assert result.recall == precision_oracle(y, x, k)
    assert 0 < result.precision < 1 and 0 < result.recall < 1


def test_missing_modes_cost_recall_and_foreign_ones_precision():
    centers = 10 * np.eye(4, dtype=np.float32)
    real = modes(0, centers, 25)
    some = precision_recall(np.repeat(real[:25], 2, axis=0), real)
    assert some == precision_recall(real[:25], real)
    assert some.precision == 1.0 and some.recall == 0.25
    extra = np.concatenate([real, -10 - normal(50, 25, 4)])
    more = precision_recall(extra, real)
    assert more.precision == 0.8 and more.recall == 1.0
    apart = precision_recall(real - 100, real)
    assert apart.precision == 0 and apart.recall == 0


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_a_set_and_its_copy_cover_each_other(offset):
    x = (offset + normal(7, 60, 8)).astype(np.float32)
    result = precision_recall(x, x[::-1].copy())
    assert result.precision == 1 and result.recall == 1


def test_copies_make_balls_of_radius_zero_which_hold_only_copies():
    point = normal(8, 1, 64) * 100
    copies = np.repeat(np.concatenate([point, 3 * point]), 5, axis=0)
    # The next float32 is off by less than the matrix product's rounding.
    next_to_it = np.nextafter(point, np.float32(np.inf))
    queries = np.concatenate([copies[:2], next_to_it, -point, point * 2])
    result = precision_recall(queries, copies, k=3)
    assert result.precision == 2 / 5


def test_the_edge_of_a_ball_is_in_it():
    # Whole numbers: every distance is exact, and (0, 5) is on the edge of the balls around both.
    members = np.array([[0, 0], [3, 4], [-3, 4], [0, -5]], np.float32) + 1000
    queries = np.array([[0, 9], [0, 10], [5, 0], [100, 0]], np.float32) + 1000
    expected = precision_oracle(queries, members, 1)
    for block in (1, 2, 10):
        assert precision_recall(queries, members, 1, block).precision == expected


def test_invariance_under_shift_rotation_and_scale():
    x, y = normal(9, 50, 5).astype(np.float64), normal(10, 50, 5) * 0.8
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert precision_recall(x, y) == precision_recall(3 * x @ rotation + 7, 3 * y @ rotation + 7)


def knn_oracle(x, labels, references, reference_labels, k):
    right = 0
    for query, label in zip(x, labels, strict=True):
        order = sorted(range(len(references)), key=lambda j: distance(query, references[j]))[:k]
        votes = [reference_labels[j] for j in order]
        right += max(votes, key=votes.count) == label
    return right / len(x)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_accuracy_equals_the_oracle(k):
    rng = np.random.default_rng(0)
    labels, reference_labels = rng.integers(0, 3, 60), rng.integers(0, 3, 90)
    x, references = (
        normal(i, len(y), 4) + y[:, None] for i, y in enumerate((labels, reference_labels))
    )
    accuracy = knn_accuracy(x, labels, references, reference_labels, k)
    np.testing.assert_allclose(accuracy, knn_oracle(x, labels, references, reference_labels, k))
    assert 0.5 < accuracy < 1


def test_the_nearest_decides_between_equal_votes():
    references = np.array([[1.0], [2], [3], [4], [5]])
    labels = np.array([7, 2, 2, 7, 9])
    query = np.zeros((1, 1))
    for k, winner in ((1, 7), (2, 7), (3, 2), (4, 7), (5, 7)):
        assert knn_accuracy(query, np.array([winner]), references, labels, k) == 1


def test_bad_input_is_refused():
    x = normal(0, 4, 3)
    for k in (0, 5):
        with pytest.raises(InputError, match="from 1 to 4"):
            nearest(x, x, k)
    with pytest.raises(InputError, match="different networks"):
        nearest(x, normal(0, 4, 2), 1)
    with pytest.raises(InputError, match="different networks"):
        precision_recall(x, normal(0, 4, 2))
    with pytest.raises(InputError, match="at least 4 are needed"):
        precision_recall(x, x[:3])
    with pytest.raises(InputError, match="k=0"):
        precision_recall(x, x, k=0)
    with pytest.raises(InputError, match="0 images"):
        knn_accuracy(x[:0], np.zeros(0, int), x, np.zeros(4, int), 1)
    broken = x.copy()
    broken[2, 1] = np.inf
    with pytest.raises(InputError, match="row 2 of the features"):
        precision_recall(x, broken)
