"""Captions as conditions: the tokens of a byte-level BPE, saved with the run."""

import dataclasses
import itertools
import json
import random
import re

import numpy as np
import pytest
from captioned import Captioned
from ml_collections import ConfigDict
from tokenizers import pre_tokenizers

from vqjax.conditions import CaptionCondition, from_json, ids_in_common, padding_id, to_json
from vqjax.errors import FieldError, InputError
from vqjax.runs.build import build_condition

COLOURS, THINGS = ("red", "green", "blue", "yellow"), ("heart", "house", "horse", "hat")
PAIRS = list(itertools.product(COLOURS, THINGS))
SOURCE = Captioned(tuple((f"a {colour} {thing}", f"{thing}, {colour}") for colour, thing in PAIRS))
CONDITION = CaptionCondition.of(SOURCE, length=24)
# Of scripts, emoji (one of several code points) and control characters that training never saw.
FOREIGN = ["红心 和 马", "😀👩‍🚀", "ψυχή", "𝔘𝔫𝔦", "naïve café", "a\x00b\x7f", "\ufeff"]


def built(source=SOURCE, **fields):
    return build_condition(ConfigDict({"condition": {"name": "caption", **fields}}), source)


def naive_ids(text, merges):
    """Byte pair encoding, merge by merge over the whole of each word."""
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {token: i for i, token in enumerate(byte_tokens)}
    for merge in merges:
        table.setdefault(merge.replace(" ", ""), len(table))
    found = []
    # The characters that stand for the bytes of each word.
    for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str(text):
        tokens = list(word)
        for merge in merges:
            pair, i = merge.split(" "), 0
            while i < len(tokens) - 1:
                if tokens[i : i + 2] == pair:
                    tokens[i : i + 2] = ["".join(pair)]
                i += 1
        found += [table[token] for token in tokens]
    return found


@pytest.mark.parametrize("text", ["a red heart", "horse, yellow", "heated houses", *FOREIGN[:2]])
def test_ids_are_those_of_byte_pair_encoding_and_then_padding(text):
    ids, expected = CONDITION.parse(text), naive_ids(text, CONDITION.merges)
    assert ids.dtype == np.int32 and ids.shape == (CONDITION.length,) == (24,)
    np.testing.assert_array_equal(ids[: len(expected)], expected)
    assert (ids[len(expected) :] == padding_id(CONDITION.num_ids)).all()


@pytest.mark.parametrize("text", [*FOREIGN, "a red heart", "it's 5% off -- (all)!"])
def test_every_text_has_ids_that_say_it(text):
    """There are no unknown characters: what training did not see is told byte by byte."""
    ids = CONDITION.parse(text)
    assert CONDITION.describe(ids) == text
    assert ids.min() >= 0 and ids.max() <= padding_id(CONDITION.num_ids)


def test_case_and_spaces_do_not_matter():
    plain = CONDITION.parse("a red heart")
    np.testing.assert_array_equal(CONDITION.parse(" A Red\n\theart "), plain)
    assert CONDITION.describe(CONDITION.parse("RED  Heart")) == "red heart"


def test_a_null_condition_has_no_words():
    null = np.full(24, padding_id(CONDITION.num_ids))
    null[0] = CONDITION.num_ids
    assert CONDITION.describe(null) == ""


def test_frequent_words_are_one_token_and_rare_ones_are_not():
    assert len(naive_ids("a red heart", CONDITION.merges)) == 3
    assert (CONDITION.parse("a red heart") < CONDITION.num_ids).sum() == 3
    once = CaptionCondition.of(Captioned((("unique words",),)))
    assert once.merges == () and once.num_ids == 256


def test_the_vocabulary_is_at_most_as_large_as_asked_for():
    small = built(vocabulary=262)
    assert small.num_ids == 262 and small.merges == CONDITION.merges[:6]
    assert 262 < CONDITION.num_ids < 400
    # Nothing but bytes.
    assert built(vocabulary=256).num_ids == 256


def test_training_depends_on_the_captions_alone():
    texts = list(SOURCE.captions)
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert CaptionCondition.of(Captioned(tuple(texts)), length=24).merges == CONDITION.merges


def test_a_condition_is_saved_and_read_back_without_the_data():
    restored = from_json(json.loads(json.dumps(to_json(CONDITION))))
    assert restored == CONDITION and hash(restored) == hash(CONDITION)
    for text in ("a red heart", *FOREIGN):
        np.testing.assert_array_equal(restored.parse(text), CONDITION.parse(text))
    np.testing.assert_array_equal(restored.in_turn(40), CONDITION.in_turn(40))
    assert len(ids_in_common(restored, CONDITION)) == CONDITION.num_ids + 2


def test_one_of_the_captions_is_drawn_and_else_it_is_the_first():
    example = {"captions": ("one", "two", "three"), "name": "image"}
    drawn = [
        CONDITION.describe(CONDITION.encode(example, np.random.default_rng(seed)))
        for seed in range(60)
    ]
    assert set(drawn) == set(example["captions"])
    assert all(drawn.count(text) > 10 for text in example["captions"])
    assert CONDITION.describe(CONDITION.encode(example)) == "one"
    again = CONDITION.encode(example, np.random.default_rng(7))
    assert CONDITION.describe(again) == drawn[7]


def test_some_captions_of_the_training_set_come_in_turn():
    rows = CONDITION.in_turn(40)
    texts = [CONDITION.describe(row) for row in rows]
    firsts = [captions[0] for captions in SOURCE.captions]
    assert texts == [firsts[i % 16] for i in range(40)]
    # Of many, from all over the set.
    many = Captioned(tuple((f"number {i}",) for i in range(1000)))
    shown = CaptionCondition.of(many).shown
    assert len(shown) == 24 and (shown[0], shown[-1]) == ("number 0", "number 999")


def test_captions_that_are_too_long_are_refused_or_cut():
    long = "a red heart and a green house"
    source = Captioned((*SOURCE.captions, ("a hat", long), ("a blue hat",)))
    tokens = len(naive_ids(long, built(source).merges))
    expected = (
        rf"^config.condition.length=5: the longest caption has {tokens} tokens, '{long}' of image"
        rf" 16: set length={tokens}, or too_long='cut'"
    )
    with pytest.raises(InputError, match=expected):
        built(source, length=5)
    assert built(source, length=tokens).length == tokens

    cut = built(source, length=5, too_long="cut")
    ids = cut.encode({"captions": (long,)})
    np.testing.assert_array_equal(ids, naive_ids(long, cut.merges)[:5])
    # What a user types is never cut, and a caption of other data is only where that was asked for.
    with pytest.raises(InputError, match=rf"^'{long}': .* has {tokens} tokens, and 5 fit"):
        cut.parse(long)
    fits = built(length=5)
    with pytest.raises(InputError, match="tokens, and 5 fit into this run's condition: leave word"):
        fits.encode({"captions": (long,)})
    with pytest.raises(InputError, match=r"the longest caption has .* of image 16"):
        fits.check(source)
    cut.check(source)


def test_a_long_text_is_shortened_in_messages():
    with pytest.raises(InputError, match=r"^'(x y ){14}x\.\.\.': this caption has 400 tokens"):
        CONDITION.parse("x y " * 100)


@pytest.mark.parametrize(
    ("captions", "problem"), [((), "no caption"), (("a dog", " \n"), "an empty caption")]
)
def test_an_image_without_a_caption_is_named(captions, problem):
    source = Captioned((*SOURCE.captions, captions))
    for refuse in (lambda: built(source), lambda: built(source, length=1, too_long="cut")):
        expected = f"^config.condition.name='caption': image 16 has {problem}: give it one, or leav"
        with pytest.raises(InputError, match=expected):
            refuse()
    with pytest.raises(InputError, match=f"image 16 has {problem}"):
        CONDITION.check(source)
    with pytest.raises(InputError, match=r"x.png has no caption|an empty caption says nothing"):
        CONDITION.encode({"captions": captions[1:], "name": "x.png"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"length": 0}, "length=0: at least 1 is needed"),
        ({"length": 2.5}, "length=2.5: a whole number is needed"),
        ({"vocabulary": 255}, "vocabulary=255: at least 256 is needed"),
        ({"too_long": "trim"}, "too_long='trim': .*valid: cut, refuse"),
        ({"lenght": 3}, "lenght: .* did you mean 'length'"),
        ({"merges": ()}, "merges: the condition 'caption' has no such field"),
    ],
)
def test_settings_out_of_range_are_named(fields, expected):
    with pytest.raises(InputError, match=f"^config.condition.{expected}"):
        built(**fields)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_caption_is_refused(text):
    with pytest.raises(InputError, match=re.escape("an empty caption says nothing: write what")):
        CONDITION.parse(text)


def test_bytes_that_are_no_text_are_refused():
    """Half of a character, which a command line or a JSON file can hold."""
    with pytest.raises(InputError, match=r"red \\udcff': this caption has bytes that are no text"):
        CONDITION.parse("red \udcff")
    with pytest.raises(FieldError, match="has a caption with bytes that are no text"):
        CaptionCondition.of(Captioned((("red", "\ud83d"),)))


def test_tokens_of_one_text_mean_the_same_in_two_runs():
    """Whatever else the runs tell otherwise."""
    longer = dataclasses.replace(CONDITION, length=30, too_long="cut")
    assert ids_in_common(longer, CONDITION) == {i: i for i in range(CONDITION.num_ids + 2)}
    other = CaptionCondition.of(Captioned((("a red heart",), ("a red heart",))), length=24)
    common = ids_in_common(other, CONDITION)
    assert len(common) >= 256 + 2
    for ours, theirs in common.items():
        if ours < CONDITION.num_ids:
            assert CONDITION.id_names[ours] == other.id_names[theirs]
