"""Captions on their way to a prior: another one each epoch, and the same ones after a restart."""

import dataclasses
import itertools

import numpy as np
import pytest
from numbered import Numbered

from vqjax.conditions import CaptionCondition
from vqjax.data import DataSettings, evaluation_batches, train_batches
from vqjax.data.token_files import from_record, to_record
from vqjax.data.token_sets import TokenForm, TokensInMemory, token_batches

COUNT, WAYS, EPOCHS = 10, 5, 30
SETTINGS = DataSettings(resolution=8, crop="center", flip=True, workers=0)


@dataclasses.dataclass
class Captioned(Numbered):
    """Five captions of each image, as COCO has them."""

    def captions_of(self, index):
        return tuple(f"image {index} in words {way}" for way in range(WAYS))

    def __getitem__(self, index):
        return super().__getitem__(index) | {"captions": self.captions_of(index)}


SOURCE = Captioned(COUNT)
CONDITION = CaptionCondition.of(SOURCE, length=16)


def told(batches, count):
    """The captions of some batches, in words: images and ways."""
    with_ids = [batch["condition"] for batch in itertools.islice(batches, count)]
    batches.close()
    words = [CONDITION.describe(ids).split() for batch in with_ids for ids in batch]
    return np.array([[int(text[1]), int(text[4])] for text in words])


def training(start_step=0, **settings):
    options = {"batch_size": COUNT, "seed": 3, "start_step": start_step}
    return train_batches(SOURCE, CONDITION, dataclasses.replace(SETTINGS, **settings), **options)


def test_each_epoch_draws_one_of_all_captions_of_each_image():
    found = told(training(), EPOCHS)
    epochs = found[:, 0].reshape(EPOCHS, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(COUNT)] * EPOCHS)
    for image in range(COUNT):
        assert set(found[found[:, 0] == image, 1]) == set(range(WAYS))
    # Not one draw for all images of an epoch.
    assert all(len(set(ways)) > 1 for ways in found[:, 1].reshape(EPOCHS, COUNT))


def test_captions_are_those_of_the_image_beside_them():
    (batch,) = evaluation_batches(SOURCE, CONDITION, SETTINGS, batch_size=COUNT)
    first = dict(zip(batch["index"], batch["image"], strict=True))
    # Held-out images are told their first caption.
    words = [CONDITION.describe(ids) for ids in batch["condition"]]
    assert words == [f"image {index} in words 0" for index in batch["index"]]
    batches = training(flip=False)
    batch = next(batches)
    batches.close()
    for image, ids in zip(batch["image"], batch["condition"], strict=True):
        np.testing.assert_array_equal(image, first[int(CONDITION.describe(ids).split()[1])])


@pytest.mark.parametrize("settings", [{}, {"crop": "random"}, {"flip": False}])
def test_a_resumed_run_draws_the_same_captions(settings):
    whole = told(training(**settings), 4)
    np.testing.assert_array_equal(told(training(3, **settings), 1), whole[3 * COUNT :])


@pytest.mark.slow
def test_workers_draw_the_same_captions_and_say_nothing(capfd):
    np.testing.assert_array_equal(told(training(workers=1), 2), told(training(), 2))
    assert "tokenizers" not in capfd.readouterr().err


class Recorded(list):
    """Images as the shards of a disk hold them."""

    form = TokenForm(2, 3, COUNT, (1, 3), "dense")

    def __getitem__(self, index):
        return from_record(self.form, to_record(self.form, super().__getitem__(index)))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_tokens_that_were_made_once_are_told_the_captions_of_the_images(where):
    numbers = np.arange(COUNT)
    codes = np.tile(numbers[:, None, None], (1, 2, 3))
    tokens = TokensInMemory({"codes": codes}, numbers, numbers, SOURCE)
    if where == "disk":
        tokens = Recorded(tokens[i] for i in range(COUNT))
    options = {"batch_size": COUNT, "seed": 3, "start_step": 1}
    batches = token_batches(tokens, CONDITION, **options)
    batch = next(batches)
    batches.close()
    found = told(token_batches(tokens, CONDITION, **options), 1)
    np.testing.assert_array_equal(found[:, 0], batch["codes"][:, 0])
    np.testing.assert_array_equal(found, told(training(1), 1))
