"""Prepared TFDS data is read without TensorFlow; what is not prepared comes with the commands."""

import io
import pickle
import subprocess
import sys
import typing

import numpy as np
import pytest
import tensorflow_datasets
from ml_collections import ConfigDict
from PIL import Image

from vqjax.conditions import CaptionCondition
from vqjax.data import build_source
from vqjax.errors import FieldError, InputError


class TinyPhotos(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Seven images to train on, three to test; the red channel is ten times the number."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": features.ClassLabel(names=["even", "odd"]),
                    "captions": features.Sequence({"text": features.Text()}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(7), "test": self._examples(3)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, count):
        for number in range(count):
            # A file and not an array: TFDS encodes arrays with TensorFlow.
            png = io.BytesIO()
            Image.new("RGB", (24, 20), (10 * number, 0, 0)).save(png, "PNG")
            png.seek(0)
            texts = [{"text": f"number {number}"}, {"text": "another"}]
            yield number, {"image": png, "label": number % 2, "captions": texts}


class Captioned(TinyPhotos):
    """One image, with texts as a data set other than COCO may hold them."""

    texts: typing.ClassVar = {}

    def _info(self):
        features = tensorflow_datasets.features
        text, image = features.Text(), features.Image(shape=(None, None, 3))
        texts = {
            name: text if isinstance(value, str) else features.Sequence(text)
            for name, value in self.texts.items()
        }
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict({"image": image, **texts})
        )

    def _examples(self, count):
        for number, example in super()._examples(1):
            yield number, {"image": example["image"], **self.texts}


class Titled(Captioned):
    """A single caption."""

    texts: typing.ClassVar = {"caption": "a title"}


class Described(Captioned):
    """A list of captions."""

    texts: typing.ClassVar = {"captions": ["one", "two", "drei Äpfel"]}


class Untold(Captioned):
    """No captions."""


class NoPhotos(TinyPhotos):
    """Labels without images."""

    def _info(self):
        label = tensorflow_datasets.features.ClassLabel(num_classes=2)
        features = tensorflow_datasets.features.FeaturesDict({"label": label})
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _examples(self, count):
        for number in range(count):
            yield number, {"label": number % 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinyPhotos, NoPhotos, Titled, Described, Untold):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def source(data_dir, split="train", **fields):
    fields = {"dataset": "tiny_photos", "validation_split": "test", **fields}
    config = ConfigDict({"name": "tfds", "data_dir": str(data_dir), **fields})
    return build_source(config, split, 32)


def test_examples_of_both_splits(data_dir):
    for split, count in (("train", 7), ("validation", 3)):
        data = source(data_dir, split)
        assert len(data) == count
        assert data.class_names == ("even", "odd")
        numbers = set()
        for index in range(count):
            example = data[index]
            number = int(example["image"][0, 0, 0]) // 10
            assert example["image"].shape == (20, 24, 3)
            assert example["label"] == number % 2
            assert example["captions"] == (f"number {number}", "another")
            assert data.captions_of(index) == example["captions"]
            numbers.add(number)
        assert numbers == set(range(count))


@pytest.mark.parametrize(
    ("dataset", "captions"),
    [("titled", ("a title",)), ("described", ("one", "two", "drei Äpfel")), ("untold", ())],
)
def test_captions_of_every_form_are_kept(data_dir, dataset, captions):
    example = source(data_dir, dataset=dataset)[0]
    assert (example["captions"], example["label"]) == (captions, 0)


def test_a_prior_is_told_any_of_the_captions(data_dir):
    data = source(data_dir)
    condition = CaptionCondition.of(data)
    drawn = [condition.encode(data[0], np.random.default_rng(seed)) for seed in range(20)]
    assert {condition.describe(ids) for ids in drawn} == set(data.captions_of(0))
    untold = source(data_dir, dataset="untold")
    with pytest.raises(FieldError, match=r"name='caption': untold:train\[0\] has no caption"):
        CaptionCondition.of(untold)


def test_slice_of_a_split_and_pickling(data_dir):
    data = source(data_dir, train_split="train[:4]")
    assert len(data) == 4
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[2]["image"], data[2]["image"])


def test_unknown_split_lists_those_there_are(data_dir):
    with pytest.raises(InputError, match="valid: test, train"):
        source(data_dir, "validation", validation_split="validation")


def test_unknown_data_set_is_named(data_dir):
    with pytest.raises(InputError, match="'no_such_photos'"):
        source(data_dir, dataset="no_such_photos")


def test_data_set_without_images_is_refused(data_dir):
    with pytest.raises(InputError, match="no_photos has no image feature, only label"):
        source(data_dir, dataset="no_photos")


def test_data_not_prepared_comes_with_the_commands(tmp_path):
    with pytest.raises(InputError, match="pip install tensorflow ") as caught:
        source(tmp_path, dataset="cifar10")
    command = f"tfds.builder('cifar10', file_format='array_record', data_dir={str(tmp_path)!r})"
    assert command in str(caught.value)


def test_data_prepared_without_random_access_comes_with_the_commands(tmp_path):
    TinyPhotos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for path in (tmp_path / "tiny_photos" / "1.0.0").iterdir():
        if path.name == "dataset_info.json":
            path.write_text(path.read_text().replace("array_record", "tfrecord"))
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(InputError, match="not prepared as array_record"):
        source(tmp_path)


@pytest.mark.slow
def test_tensorflow_is_never_imported(data_dir, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from ml_collections import ConfigDict
from vqjax.data import build_source
fields = dict(name="tfds", dataset="tiny_photos", data_dir={str(data_dir)!r})
assert build_source(ConfigDict(fields), "train", 32)[0]["image"].shape == (20, 24, 3)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
