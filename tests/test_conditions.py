"""Conditions as objects: from examples and from text to ids, saved and read back."""

import json

import numpy as np
import pytest

from vqjax.conditions import ClassCondition, NoCondition, condition_class, from_json, to_json
from vqjax.errors import InputError

CLASSES = ClassCondition(("cat", "dog", "1"))


def test_a_class_is_its_label_by_name_or_by_number():
    assert (CLASSES.length, CLASSES.num_ids) == (1, 3)
    np.testing.assert_array_equal(CLASSES.encode({"label": 2, "captions": ("a dog",)}), [2])
    np.testing.assert_array_equal(CLASSES.parse("dog"), [1])
    np.testing.assert_array_equal(CLASSES.parse("0"), [0])
    # A name comes before a number.
    np.testing.assert_array_equal(CLASSES.parse("1"), [2])
    assert CLASSES.parse("dog").dtype == CLASSES.encode({"label": 2}).dtype == np.int32
    assert CLASSES.describe(CLASSES.parse("dog")) == "dog"
    for text in ("3", "-1", "cow", ""):
        with pytest.raises(InputError, match="give a number from 0 to 2, or one of: cat, dog, 1"):
            CLASSES.parse(text)
    np.testing.assert_array_equal(CLASSES.in_turn(5), [[0], [1], [2], [0], [1]])


def test_without_a_condition_there_are_no_ids():
    nothing = NoCondition()
    assert (nothing.length, nothing.num_ids) == (0, 0)
    assert nothing.encode({"label": 2}).shape == (0,)
    assert nothing.in_turn(4).shape == (4, 0)
    assert nothing.describe(nothing.encode({})) == ""
    with pytest.raises(InputError, match="this run is unconditional; leave the class out"):
        nothing.parse("cat")


@pytest.mark.parametrize("condition", [NoCondition(), CLASSES])
def test_a_condition_is_saved_and_read_back(condition):
    assert from_json(json.loads(json.dumps(to_json(condition)))) == condition


def test_an_unknown_condition_lists_the_valid_ones():
    with pytest.raises(InputError, match="did you mean 'class'"):
        condition_class("classes")
