"""Tables on disk: what was computed survives, and nothing else is taken for it."""

import json

import numpy as np
import pytest

from vqjax.errors import InputError
from vqjax.evaluation.rows import Rows, fill

COLUMNS = {"x": ((3,), np.float32), "label": ((), np.int32)}


def batch(i, size=4):
    x = np.random.default_rng(i).normal(size=(size, 3)).astype(np.float32)
    return {"x": x, "label": np.full(size, i, np.int32)}


def contents(rows):
    return {name: np.array(rows[name]) for name in COLUMNS}


def assert_same(a, b):
    for name in COLUMNS:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_table_opened_again_goes_on(tmp_path):
    whole = Rows(tmp_path / "whole", 12, COLUMNS)
    for i in range(3):
        whole.append(batch(i), finished=i == 2)
    first = Rows(tmp_path / "parts", 12, COLUMNS)
    first.append(batch(0))
    second = Rows(tmp_path / "parts", 12, COLUMNS)
    assert (second.batches, second.count, second.finished) == (1, 4, False)
    second.append(batch(1))
    second.append(batch(2), finished=True)
    third = Rows(tmp_path / "parts", 12, COLUMNS)
    assert third.finished and third.count == 12
    assert_same(contents(third), contents(whole))


def test_a_kill_between_rows_and_progress_costs_a_batch(tmp_path):
    rows = Rows(tmp_path, 12, COLUMNS)
    rows.append(batch(0))
    before = (tmp_path / "progress.json").read_text()
    rows.append(batch(7))
    (tmp_path / "progress.json").write_text(before)
    again = Rows(tmp_path, 12, COLUMNS)
    assert again.count == 4
    again.append(batch(1))
    assert_same(contents(again), {k: np.concatenate([batch(0)[k], batch(1)[k]]) for k in COLUMNS})


@pytest.mark.parametrize("damage", ["capacity", "column", "progress", "type"])
def test_what_does_not_fit_is_begun_again(tmp_path, damage, caplog):
    Rows(tmp_path, 12, COLUMNS).append(batch(0), finished=True)
    capacity, columns = 12, dict(COLUMNS)
    if damage == "capacity":
        capacity = 16
    elif damage == "type":
        columns["label"] = ((), np.int64)
    elif damage == "column":
        (tmp_path / "x.npy").unlink()
    else:
        (tmp_path / "progress.json").write_text(json.dumps([]))
    rows = Rows(tmp_path, capacity, columns)
    assert (rows.batches, rows.count) == (0, 0)
    assert "starting it again" in caplog.text
    # Nor once it is empty.
    again = Rows(tmp_path, capacity, columns)
    assert (again.batches, again.count, again.finished) == (0, 0, False)


def test_a_value_that_is_not_finite_is_named_and_the_rest_kept(tmp_path):
    rows = Rows(tmp_path, 12, COLUMNS)
    rows.append(batch(0))
    broken = batch(1)
    broken["x"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"x of image 6 is not finite.*the 4 images before"):
        rows.append(broken)
    assert Rows(tmp_path, 12, COLUMNS).count == 4


def test_only_valid_rows_of_known_columns_are_kept(tmp_path):
    rows = Rows(tmp_path, 8, COLUMNS)
    valid = np.array([True, False, True, True])
    batches = [
        {"image": np.ones((4, 2)), "label": batch(i)["label"], "valid": valid} for i in (0, 1)
    ]
    measured = iter([batch(0)["x"], batch(1)["x"]])
    fill(rows, batches, lambda images: {"x": next(measured), "other": np.ones(4)}, 2)
    assert rows.finished and rows.count == 6
    np.testing.assert_array_equal(rows["x"][:3], batch(0)["x"][valid])
    np.testing.assert_array_equal(rows["label"], [0, 0, 0, 1, 1, 1])
