"""Tokens that were made before give the batches that images would give."""

import dataclasses
import itertools

import numpy as np
import pytest
from numbered import NUMBERS, Numbered

from vqjax.conditions import ClassCondition
from vqjax.data import DataSettings, Share, train_batches
from vqjax.data.pipeline import enumerated_views, view_batches
from vqjax.data.token_sets import TokenForm, TokensInMemory, token_batches

CENTER = DataSettings(resolution=16, crop="center", flip=False, workers=0)
FLIPPED = dataclasses.replace(CENTER, flip=True)
RANDOM = DataSettings(resolution=16, min_scale=0.7, workers=0)


class Draws(ClassCondition):
    """A condition that draws, after the augmentation has drawn."""

    def encode(self, example, rng=None):
        return np.array([example["label"], rng.integers(1000)], np.int32)


def codes_of(images):
    """Some pixels: they tell an image from another, and from its mirror image."""
    return images[..., ::4, ::4, 0].reshape(*images.shape[:-3], -1).astype(np.int32)


def tokens_of(source, settings, views, **options):
    options = {"indices": range(len(source)), "seed": 0, "batch_size": len(source)} | options
    batches = list(view_batches(source, settings, views=views, **options))
    image, label, index = (
        np.concatenate([batch[name] for batch in batches])[: len(options["indices"])]
        for name in ("image", "label", "index")
    )
    return TokensInMemory({"codes": codes_of(image)}, label, index, source)


def take(steps, batches):
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def batches_of(tokens, steps=4, condition=NUMBERS, **options):
    options = {"batch_size": 8, "seed": 3, "start_step": 0} | options
    return take(steps, token_batches(tokens, condition, **options))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(("settings", "views"), [(CENTER, 1), (FLIPPED, 2)])
@pytest.mark.parametrize("broken", [(), (4, 5)])
def test_enumerated_views_are_those_that_images_would_show(settings, views, broken):
    """In the same order, mirrored in the same places, with the same conditions."""
    assert enumerated_views(settings) == views
    settings = dataclasses.replace(settings, on_broken="skip")
    source, condition = Numbered(broken=broken), Draws(NUMBERS.classes)
    tokens = tokens_of(source, settings, views, batch_size=3)
    # The captions are those of the image that is in the place of a broken one.
    assert list(tokens.indices) == [6 if i in broken else i for i in range(10)]
    options = {"batch_size": 8, "seed": 3, "start_step": 2}
    seen = take(4, train_batches(source, condition, settings, **options))
    expected = [{"codes": codes_of(b["image"]), "condition": b["condition"]} for b in seen]
    for batch, wanted in zip(batches_of(tokens, 4, condition, start_step=2), expected, strict=True):
        assert_same(batch, wanted)
    together = np.concatenate([batch["codes"] for batch in expected])
    mirrored = tokens.arrays["codes"][:, 0]
    hits = (together[:, None] == mirrored[None]).all(-1).any(1)
    assert views == 1 or 0 < hits.sum() < len(hits)


class Alike(Numbered):
    """Every image is the same one."""

    def __getitem__(self, index):
        return super().__getitem__(0)


def test_drawn_views_depend_on_seed_index_and_number_alone():
    assert enumerated_views(RANDOM) is None
    tokens = tokens_of(Numbered(), RANDOM, views=3)
    codes = tokens.arrays["codes"]
    assert len({row.tobytes() for row in codes.reshape(30, -1)}) == 30
    few = tokens_of(Numbered(), RANDOM, views=2, batch_size=2, indices=[7, 3, 4])
    np.testing.assert_array_equal(few.arrays["codes"], codes[[7, 3, 4], :2])
    assert not np.array_equal(tokens_of(Numbered(), RANDOM, 3, seed=1).arrays["codes"], codes)
    one, two = tokens_of(Alike(), RANDOM, views=3).arrays["codes"][:2]
    assert not np.array_equal(one, two)


def test_every_epoch_has_every_image_once_and_all_views_come_by():
    tokens = tokens_of(Numbered(), RANDOM, views=3)
    seen = {}
    for epoch in batches_of(tokens, 20, batch_size=10):
        assert sorted(epoch["condition"][:, 0]) == list(range(10))
        for codes, (label,) in zip(epoch["codes"], epoch["condition"], strict=True):
            (view,) = np.flatnonzero((tokens.arrays["codes"][label] == codes).all(-1))
            seen.setdefault(label, []).append(view)
    assert all(set(views) == {0, 1, 2} for views in seen.values())


@pytest.mark.parametrize("processes", [2, 4])
def test_batch_is_a_function_of_the_step_on_any_number_of_processes(processes):
    tokens = tokens_of(Numbered(), RANDOM, views=3)
    whole = batches_of(tokens, 7)
    parts = [
        batches_of(tokens, 2, start_step=5, share=Share(index, processes))
        for index in range(processes)
    ]
    for step, later in enumerate(zip(*parts, strict=True), start=5):
        joined = {key: np.concatenate([part[key] for part in later]) for key in later[0]}
        assert_same(joined, whole[step])


def test_positions_of_a_sparse_tokenizer_are_those_of_the_codes():
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2**16, (10, 2, 5)) for name in ("codes", "positions")}
    tokens = TokensInMemory(arrays, np.arange(10), np.arange(10), Numbered())
    (batch,) = batches_of(tokens, 1)
    for codes, positions, (label,) in zip(*batch.values(), strict=True):
        (view,) = np.flatnonzero((arrays["codes"][label] == codes).all(-1))
        np.testing.assert_array_equal(arrays["positions"][label, view], positions)
    assert batch["codes"].dtype == batch["positions"].dtype == np.int32


@pytest.mark.parametrize(
    ("form", "dtype", "size"),
    [
        (TokenForm(2, 64, 2**16, (8, 8), "dense"), np.uint16, 2 * 64 * 2),
        (TokenForm(2, 64, 2**16 + 1, (8, 8), "dense"), np.int32, 2 * 64 * 4),
        # The position 256 * 256, of no token, has to be there too.
        (TokenForm(1, 9, 32, (256, 256), "sparse"), np.int32, 2 * 9 * 4),
        (TokenForm(1, 9, 32, (255, 256), "sparse"), np.uint16, 2 * 9 * 2),
    ],
)
def test_smallest_type_that_holds_all(form, dtype, size):
    assert form.dtype == dtype
    assert form.bytes_per_image == size
