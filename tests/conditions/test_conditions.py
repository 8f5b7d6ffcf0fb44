"""Conditions as objects: from examples and from text to ids, saved and read back."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_condition import LettersCondition

from vqjax.conditions import (
    CONDITIONS,
    ClassCondition,
    NoCondition,
    condition_class,
    from_json,
    ids_in_common,
    to_json,
)
from vqjax.errors import InputError
from vqjax.runs.build import build_condition

CLASSES = ClassCondition(("cat", "dog", "1"))


class Source:
    """Two images with captions, and three classes."""

    class_names = ("cat", "dog", "1")

    def captions_of(self, index):
        return [("ad", "cab"), ("bed",)][index]

    def name_of(self, index):
        return ["one", "two"][index]

    def __len__(self):
        return 2


def test_a_class_is_its_label_by_name_or_by_number():
    assert (CLASSES.length, CLASSES.num_ids) == (1, 3)
    np.testing.assert_array_equal(CLASSES.encode({"label": 2, "captions": ("a dog",)}), [2])
    np.testing.assert_array_equal(CLASSES.parse("dog"), [1])
    np.testing.assert_array_equal(CLASSES.parse("0"), [0])
    # A name comes before a number.
    np.testing.assert_array_equal(CLASSES.parse("1"), [2])
    assert CLASSES.parse("dog").dtype == CLASSES.encode({"label": 2}).dtype == np.int32
    assert CLASSES.describe(CLASSES.parse("dog")) == "dog"
    assert CLASSES.classes == ("cat", "dog", "1") and NoCondition().classes == ()
    # "²" is a digit, but no number.
    for text in ("3", "-1", "cow", "", "²"):
        with pytest.raises(InputError, match="give a number from 0 to 2, or one of: cat, dog, 1"):
            CLASSES.parse(text)
    np.testing.assert_array_equal(CLASSES.in_turn(5), [[0], [1], [2], [0], [1]])


def test_without_a_condition_there_are_no_ids():
    nothing = NoCondition()
    assert (nothing.length, nothing.num_ids) == (0, 0)
    assert nothing.encode({"label": 2}).shape == (0,)
    assert nothing.in_turn(4).shape == (4, 0)
    assert nothing.describe(nothing.encode({})) == ""
    with pytest.raises(InputError, match="this run is unconditional; leave it out"):
        nothing.parse("cat")


def test_a_condition_is_made_of_a_training_set():
    source = Source()
    assert ClassCondition.of(source) == CLASSES and NoCondition.of(source) == NoCondition()
    assert hash(ClassCondition.of(source)) == hash(CLASSES)


def test_only_so_many_classes_are_listed():
    many = ClassCondition(tuple(f"class{i}" for i in range(30)))
    with pytest.raises(InputError, match=r"from 0 to 29, or one of: class0, .*, class19, \.\.\.$"):
        many.parse("30")


def test_a_condition_of_another_kind_is_a_subclass_and_its_line(monkeypatch):
    """Its fields are those that its `of` takes by keyword; what is wrong is said with its path."""
    monkeypatch.setitem(CONDITIONS, "letters", LettersCondition)
    config = ConfigDict({"condition": {"name": "letters", "letters": 2}})
    condition = build_condition(config, Source())
    assert condition.letters == 2 and condition.alphabet == "abcde"
    assert condition.classes == ()
    np.testing.assert_array_equal(condition.encode({"captions": ("a", "bad")}), [0, 6])
    assert from_json(json.loads(json.dumps(to_json(condition)))) == condition
    for fields, expected in [
        ({"name": "letters", "leters": 2}, "leters: .* did you mean 'letters'. valid: alphabet, l"),
        ({"name": "letters", "letters": 0}, "letters=0: at least 1 is needed"),
        ({"name": "letters", "source": "x"}, "source: the condition 'letters' has no such field"),
        ({"name": "class", "classes": ("a",)}, "classes: the condition 'class' .*; it has none"),
    ]:
        config = ConfigDict({"condition": fields})
        with pytest.raises(InputError, match=f"^config.condition.{expected}"):
            build_condition(config, Source())


@pytest.mark.parametrize("condition", [NoCondition(), CLASSES])
def test_a_condition_is_saved_and_read_back(condition):
    assert from_json(json.loads(json.dumps(to_json(condition)))) == condition


def test_an_unknown_condition_lists_the_valid_ones():
    for refuse in (lambda: condition_class("classes"), lambda: from_json({"name": "classes"})):
        with pytest.raises(InputError, match=r"^config.condition.name='classes': did you mean 'cl"):
            refuse()
    with pytest.raises(InputError, match=r"^config.condition.name=None: did you mean 'none'"):
        condition_class(None)


def test_ids_of_two_conditions_that_mean_the_same():
    other = ClassCondition(("dog", "cow", "cat", "hen"))
    # By our id theirs: cat, dog; the null id and that of padding come after the classes.
    assert ids_in_common(other, CLASSES) == {0: 2, 1: 0, 3: 4, 4: 5}
    assert ids_in_common(CLASSES, CLASSES) == {i: i for i in range(5)}
    letters = LettersCondition(4, "abc")
    assert ids_in_common(letters, letters) == {i: i for i in range(letters.num_ids + 2)}
    n = letters.num_ids
    assert ids_in_common(letters, CLASSES) == {3: n, 4: n + 1}
