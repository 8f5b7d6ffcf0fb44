"""A batch is a function of the seed and the step alone; broken images never slip through."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest
from numbered import NUMBERS, Numbered

from vqjax.conditions import ClassCondition
from vqjax.data import BrokenImageError, DataSettings, Share, evaluation_batches, train_batches
from vqjax.errors import InputError

SETTINGS = DataSettings(resolution=16, min_scale=0.7, workers=0)


def batches(steps, source=None, settings=SETTINGS, **options):
    options = {"batch_size": 8, "seed": 3, "start_step": 0} | options
    iterator = train_batches(source or Numbered(), NUMBERS, settings, **options)
    taken = list(itertools.islice(iterator, steps))
    iterator.close()
    return taken


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_shapes_and_types():
    (batch,) = batches(1)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((8, 16, 16, 3), np.uint8),
        "condition": ((8, 1), np.int32),
    }


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_parts_of_the_processes_make_up_the_batch_of_one(processes):
    whole = batches(4)
    parts = [batches(4, share=Share(index, processes)) for index in range(processes)]
    for step in range(4):
        assert_same(joined([part[step] for part in parts]), whole[step])


def test_starting_anywhere_gives_what_an_unbroken_run_gives():
    whole = batches(7)
    for start in (1, 5):
        for later, batch in zip(batches(2, start_step=start), whole[start:], strict=False):
            assert_same(later, batch)


def test_starting_late_reads_only_what_it_yields():
    source = Numbered()
    batches(1, source, start_step=10**9)
    assert len(source.reads) <= 8 * 6  # the batch and those read ahead


def test_every_epoch_has_every_image_once_in_an_order_of_its_own():
    labels = np.concatenate([batch["condition"] for batch in batches(5)]).reshape(4, 10)
    for epoch in labels:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in labels}) == 4


def test_seed_changes_order_and_augmentation_differs_between_epochs():
    assert not np.array_equal(batches(1)[0]["condition"], batches(1, seed=4)[0]["condition"])
    everything = joined(batches(5))
    first, second = np.flatnonzero(everything["condition"] == 0)[:2]
    assert not np.array_equal(everything["image"][first], everything["image"][second])


def test_broken_image_stops_the_run_and_is_named():
    with pytest.raises(BrokenImageError, match="number 4 is broken"):
        batches(2, Numbered(broken=(4,)))
    with pytest.raises(BrokenImageError, match="number 4 is broken"):
        list(evaluation_batches(Numbered(broken=(4,)), NUMBERS, SETTINGS, batch_size=4))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skipped_image_is_logged_once_and_replaced_by_the_next_with_any_workers(caplog, workers):
    whole = joined(batches(5))
    source = Numbered(broken=(4, 5))
    settings = dataclasses.replace(SETTINGS, on_broken="skip")
    serial = batches(5, source, settings)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        parts = batches(5, source, dataclasses.replace(settings, workers=workers))
    for part, batch in zip(parts, serial, strict=True):
        assert_same(part, batch)
    left = joined(parts)
    kept = ~np.isin(whole["condition"][:, 0], (4, 5))
    expected = np.where(kept, whole["condition"][:, 0], 6)
    np.testing.assert_array_equal(left["condition"][:, 0], expected)
    np.testing.assert_array_equal(left["image"][kept], whole["image"][kept])
    logged = sorted(record.args[1] for record in caplog.records)
    assert logged == ["number 4 is broken", "number 5 is broken"]


def test_source_without_one_readable_image_is_an_error():
    with pytest.raises(InputError, match="none of the 3 images"):
        settings = dataclasses.replace(SETTINGS, on_broken="skip")
        batches(1, Numbered(3, broken=(0, 1, 2)), settings)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("limit", [None, 3, 8, 99])
def test_evaluation_counts_every_image_once_in_one_order(processes, limit):
    parts = [
        list(
            evaluation_batches(
                Numbered(),
                NUMBERS,
                SETTINGS,
                batch_size=4,
                limit=limit,
                share=Share(index, processes),
            )
        )
        for index in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    whole = joined([joined(list(step)) for step in zip(*parts, strict=True)])
    everything = joined(list(evaluation_batches(Numbered(), NUMBERS, SETTINGS, batch_size=10)))
    order = everything["index"]
    np.testing.assert_array_equal(np.sort(order), np.arange(10))
    np.testing.assert_array_equal(whole["index"][whole["valid"]], order[: limit or 10])
    np.testing.assert_array_equal(whole["label"], whole["index"])
    assert whole["image"].shape[1:] == (16, 16, 3)


def test_stand_in_for_a_broken_image_is_not_valid():
    settings = dataclasses.replace(SETTINGS, on_broken="skip")
    numbers = Numbered(broken=(9,))
    whole = joined(list(evaluation_batches(numbers, NUMBERS, settings, batch_size=4)))
    np.testing.assert_array_equal(np.sort(whole["index"][whole["valid"]]), np.arange(9))
    assert whole["image"].reshape(12, -1).max(1).min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": Share(0, 3)}, "multiple of 3"),
        ({"batch_size": 0}, "multiple of 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named_at_once(options, message):
    arguments = {"batch_size": 8, "seed": 0, "start_step": 0}
    with pytest.raises(InputError, match=message):
        train_batches(Numbered(), NUMBERS, SETTINGS, **(arguments | options))


class FirstWord(ClassCondition):
    """A condition that chooses among the captions of an image."""

    def encode(self, example, rng=None):
        return np.array([int(rng.integers(100)) if rng else 0], np.int32)


def test_a_condition_may_draw_anew_in_each_epoch_and_the_same_on_any_processes():
    def conditions(**options):
        parts = train_batches(
            Numbered(), FirstWord(()), SETTINGS, batch_size=10, seed=3, start_step=0, **options
        )
        drawn = [batch["condition"] for batch in itertools.islice(parts, 2)]
        parts.close()
        return drawn

    first, second = conditions()
    assert (first != second).any()
    halves = [conditions(share=Share(index, 2)) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([half[1] for half in halves]), second)
    (held_out,) = evaluation_batches(Numbered(), FirstWord(()), SETTINGS, batch_size=10)
    assert not held_out["condition"].any()
