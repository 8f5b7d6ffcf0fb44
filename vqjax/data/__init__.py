"""Data sets by name, and the batches that training and evaluation read from them."""

import dataclasses

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.data.delivery import Share
from vqjax.data.folder import Folder
from vqjax.data.images import BrokenImageError
from vqjax.data.openmoji import OpenMoji
from vqjax.data.pipeline import DataSettings, evaluation_batches, train_batches
from vqjax.data.sources import Example, Source, Split
from vqjax.data.tfds import TFDS

__all__ = [
    "SOURCES",
    "BrokenImageError",
    "DataSettings",
    "Example",
    "Share",
    "Source",
    "Split",
    "build_source",
    "evaluation_batches",
    "train_batches",
]

SOURCES: dict[str, type] = {"openmoji": OpenMoji, "folder": Folder, "tfds": TFDS}


def build_source(config: ConfigDict, split: Split, resolution: int, prepare: bool = True) -> Source:
    """Opens one split of the data set that `config.data.source` names.

    Args:
        config: `config.data.source`: the `name` of a source, and fields of its class.
        split: "train" or "validation".
        resolution: side in pixels at which a source that draws its images draws them.
        prepare: get the images ready; without, only their number, classes and captions are to be
            asked for.

    Raises:
        InputError: unknown name or field, or what the source's class raises.
    """
    given: dict[str, object] = {"split": split}
    source_class = SOURCES.get(config.get("name"))
    if source_class and "resolution" in {f.name for f in dataclasses.fields(source_class)}:
        given["resolution"] = resolution
    source: Source = registry.build("data.source", SOURCES, config.to_dict(), **given)
    if prepare:
        source.prepare()
    return source
