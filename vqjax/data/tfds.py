"""TensorFlow Datasets, read without TensorFlow."""

import dataclasses
from typing import Any, SupportsIndex

import tensorflow_datasets

from vqjax.data.images import decode_image
from vqjax.data.sources import Example, Split
from vqjax.errors import InputError


@dataclasses.dataclass
class TFDS:
    """One split of an image data set that tensorflow-datasets has prepared as array_record.

    Class = the `label` feature if it is a class label, else all images are of one class. Captions =
    all texts of the `caption` or `captions` feature if there is one (coco_captions has five).

    Args:
        split: "train" or "validation".
        dataset: its name in the catalogue, with config and version if needed ("lsun/bedroom").
        data_dir: where it was prepared; None or "" for $TFDS_DATA_DIR or ~/tensorflow_datasets.
        train_split: the split to train on, with a slice if wanted ("train[:90%]").
        validation_split: the split to validate on.

    Raises:
        InputError: unknown data set or split, data not prepared (with the commands that prepare
            it), no `image` feature.
    """

    split: Split
    dataset: str
    data_dir: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"

    def __post_init__(self) -> None:
        builder = self._builder()
        features = dict(builder.info.features.items())
        self._full_name = builder.info.full_name
        if not isinstance(features.get("image"), tensorflow_datasets.features.Image):
            raise InputError(
                f"config.data.source.dataset: {self.dataset} has no image feature, only "
                f"{', '.join(sorted(features))}; choose a data set of images"
            )
        label: Any = features.get("label")
        self._has_label = isinstance(label, tensorflow_datasets.features.ClassLabel)
        self._class_names: tuple[str, ...] = tuple(label.names) if self._has_label else ("all",)
        # The raw file is decoded here, as for the other sources: TFDS would need OpenCV or clip
        # what is not 8-bit RGB.
        decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
        field = f"{self.split}_split"
        self._split_name = getattr(self, field)
        try:
            self._data = builder.as_data_source(self._split_name, decoders=decoders)
        except NotImplementedError as error:
            raise self._not_prepared() from error
        except ValueError as error:
            raise InputError(
                f"config.data.source.{field}: {self.dataset} has no split {self._split_name!r}; "
                f"valid: {', '.join(sorted(builder.info.splits))}, or a slice of one"
            ) from error
        if len(self._data) == 0:
            raise InputError(f"config.data.source.{field}: {self._split_name!r} is empty")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class labels."""
        return self._class_names

    @property
    def fingerprint(self) -> str:
        """Name, version and split of the data set."""
        return f"{self._full_name}, {self._split_name}"

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self._data[index]
        name = self.name_of(int(index))
        return Example(
            image=decode_image(record["image"], name),
            label=int(record["label"]) if self._has_label else 0,
            captions=_captions(record),
            name=name,
        )

    def prepare(self) -> None:
        """Does nothing: the data set is prepared."""

    def captions_of(self, index: int) -> tuple[str, ...]:
        """All texts of an image's `caption` or `captions` feature."""
        return _captions(self._data[index])

    def name_of(self, index: int) -> str:
        """Data set, split and index of an image."""
        return f"{self.dataset}:{self._split_name}[{index}]"

    def _builder(self) -> tensorflow_datasets.core.DatasetBuilder:
        try:
            builder = tensorflow_datasets.builder(self.dataset, data_dir=self.data_dir or None)
        except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
            raise InputError(
                f"config.data.source.dataset: {self.dataset!r} is neither in "
                f"{self.data_dir or 'the default data_dir'} nor in the TFDS catalogue; "
                "names: https://www.tensorflow.org/datasets/catalog"
            ) from error
        # Some builders import TensorFlow as soon as they are made.
        except ImportError as error:
            raise self._not_prepared() from error
        if not builder.is_prepared():
            raise self._not_prepared()
        return builder

    def _not_prepared(self) -> InputError:
        where = f", data_dir={self.data_dir!r}" if self.data_dir else ""
        return InputError(
            f"config.data.source.dataset: {self.dataset} is not prepared as array_record in "
            f"{self.data_dir or 'the default data_dir'}; prepare it once, on any machine: "
            'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({self.dataset!r}, file_format='array_record'{where})"
            '.download_and_prepare()"'
        )


def _captions(record: dict[str, Any]) -> tuple[str, ...]:
    texts = record.get("caption", record.get("captions", ()))
    # A sequence of dicts comes as a dict of sequences.
    if isinstance(texts, dict):
        texts = texts.get("text", ())
    if isinstance(texts, (str, bytes)):
        texts = (texts,)
    return tuple(text.decode() if isinstance(text, bytes) else str(text) for text in texts)
