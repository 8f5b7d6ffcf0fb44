"""Tables: parameters that add up, and numbers as people read them."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from vqjax.generation.run import Run
from vqjax.report import tables


def test_parameters_add_up():
    variables = Run(tiny.finished_run().workdir, tiny.one_device()).tokenizer_variables
    rows = tables.parameters(variables)
    trained = [row for row in rows if row.share is not None]
    tops = [row for row in trained if row.level == 0]
    total = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert tables.size(variables) == sum(row.size for row in tops) == total
    assert sum(row.share for row in tops) == pytest.approx(1)
    assert sum(row.arrays for row in tops) == len(jax.tree.leaves(variables["params"]))
    encoder = [row.module for row in trained].index("encoder")
    parts = trained[encoder + 1 :]
    inner = parts[: next((i for i, row in enumerate(parts) if row.level == 0), len(parts))]
    assert sum(row.size for row in inner) == trained[encoder].size
    assert any("quantizer (state)" in row.module for row in rows)


def test_names_with_numbers_are_in_their_order():
    variables = {"params": {f"block_{i}": {"kernel": np.zeros(i)} for i in range(1, 12)}}
    modules = [row.module for row in tables.parameters(variables)]
    assert modules == [f"block_{i}" for i in range(1, 12)]


def test_numbers_as_people_read_them():
    shown = {0.123456: "0.1235", 1234567.8: "1,234,568", 12: "12", 4000.0: "4,000", None: "–"}
    assert {value: tables.number(value) for value in shown} == shown
    assert tables.number(float("nan")) == "not finite"
    rows = tables.nested({"a": {"b": [1, 2], "c": None}, "d": [{"e": True}], "f": ""})
    assert [dataclasses.astuple(row) for row in rows] == [
        (0, "a", None),
        (1, "b", "1, 2"),
        (1, "c", "not set"),
        (0, "d", None),
        (1, "1", None),
        (2, "e", "yes"),
        (0, "f", "none"),
    ]
