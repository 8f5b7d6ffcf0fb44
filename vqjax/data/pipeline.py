"""Batches of a source: a pure function of the step, on any number of processes and workers."""

import dataclasses
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import grain
import numpy as np

from vqjax.conditions import Condition
from vqjax.data.delivery import WHOLE, Batch, Share, deliver, local_batch_size
from vqjax.data.images import BrokenImageError, center_crop, random_crop, random_flip
from vqjax.data.sources import Source
from vqjax.errors import InputError
from vqjax.settings import Range, check_settings, setting

Crop = Literal["center", "random"]
OnBroken = Literal["error", "skip"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Settings of the images that are trained on: `config.data` without its source.

    Raises:
        FieldError: a value out of its range.
    """

    resolution: int = setting(256, "side of the images in pixels", Range(1))
    crop: Crop = setting("random", "place of the square, after the shorter side is resized")
    min_scale: float = setting(
        1.0, "random zoom: least part of the shorter side that a crop takes", Range(0, 1, True)
    )
    flip: bool = setting(True, "mirror half of the images")
    workers: int = setting(4, "processes that load images; 0 loads in this process", Range(0))
    on_broken: OnBroken = setting("error", "an unreadable image: stop, or name and replace it")

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)


def train_batches(
    source: Source,
    condition: Condition,
    settings: DataSettings,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    share: Share = WHOLE,
) -> Generator[Batch, None, None]:
    """Endless training batches, from the batch of `start_step` on.

    The global batch of step s is elements [s*batch_size, (s+1)*batch_size) of the repeated data
    set, shuffled anew each epoch; process p gets the p-th contiguous part. Crop and flip are
    seeded by an element's place in that order. So a batch depends on the seed and the step alone:
    starting anywhere costs nothing, and no state needs saving.

    Close the iterator to stop its threads and workers.

    Args:
        source: the images.
        condition: what is told of each image besides.
        settings: how the images are read.
        batch_size: images of all processes together.
        seed: of the shuffle and the augmentation, in [0, 2**32).
        start_step: step of the first batch.
        share: of this process.

    Yields:
        {"image": uint8 [b, resolution, resolution, 3], "condition": int32 [b, c]} with b the local
        batch.

    Raises:
        InputError: arguments out of range; from the iterator, a broken image.
    """
    read, augment = _Read(source, settings.on_broken), _Augment(condition, settings)
    return shuffled_batches(
        len(source),
        read,
        augment,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        share=share,
        workers=settings.workers,
    )


def shuffled_batches(
    count: int,
    read: Callable[[int], Any],
    draw: Callable[[Any, np.random.Generator], dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    share: Share = WHOLE,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """What `train_batches` says of the batches, of whatever is read and drawn.

    Args:
        count: elements of the set.
        read: gives an element by its index.
        draw: gives a row of a batch, by name, of an element and random numbers of its own; its
            arrays are stacked, and under "broken" are messages to be logged.
        batch_size: rows of all processes together.
        seed: of the shuffle and the draws, in [0, 2**32).
        start_step: step of the first batch.
        share: of this process.
        workers: processes that read and draw; 0 for threads of this one.

    Raises:
        InputError: arguments out of range.
    """
    local = local_batch_size(batch_size, share)
    if not 0 <= seed < 2**32:
        raise InputError(f"config.seed={seed}: give a seed from 0 to {2**32 - 1}")
    # grain seeds what is drawn by its place in this chain, which is so the same for images and for
    # their tokens: these get the views that the images would get.
    elements = grain.MapDataset.range(count).seed(seed).shuffle().repeat().map(read)
    batch = _TrainBatch(elements.random_map(draw), batch_size, share.index * local, local)
    steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size).map(batch)
    return deliver(steps, workers)


def enumerated_views(settings: DataSettings) -> int | None:
    """How many pictures crop and flip can make of an image; None where they cannot be counted."""
    if settings.crop == "random":
        return None
    return 2 if settings.flip else 1


def view_batches(
    source: Source,
    settings: DataSettings,
    indices: Sequence[int],
    *,
    views: int,
    seed: int,
    batch_size: int,
    share: Share = WHOLE,
) -> Generator[dict[str, Any], None, None]:
    """Several views of each of some images, once, in the order of their indices.

    A view is what training sees of an image in one epoch: where all of them can be enumerated,
    the mirrored one and the other; else one that is drawn by the seed, the index and its number.

    Args:
        source: the images.
        settings: how the images are read.
        indices: of the images.
        views: of each image; where they can be enumerated, that many.
        seed: of the views that are drawn.
        batch_size: images of all processes together.
        share: of this process.

    Yields:
        {"image": uint8 [b, views, resolution, resolution, 3], "label": int32 [b], "index": int32
        [b], "captions": b tuples of texts} with b the local batch, the last one padded with repeats
        of the last image. "index" is of the image that was read, another one for a broken image.

    Raises:
        InputError: arguments out of range; from the iterator, a broken image.
    """
    local = local_batch_size(batch_size, share)
    read = _ReadViews(_Read(source, settings.on_broken), settings, views, seed)
    batch = _ViewBatch(read, indices, batch_size, share.index * local, local)
    batches = -(-len(indices) // batch_size)
    return deliver(grain.MapDataset.range(batches).map(batch), settings.workers)


def evaluation_batches(
    source: Source,
    condition: Condition,
    settings: DataSettings,
    *,
    batch_size: int,
    limit: int | None = None,
    start: int = 0,
    share: Share = WHOLE,
) -> Generator[Batch, None, None]:
    """The images of a source once, as central squares, in a random order that is always the same.

    So the first ones are a fair sample of all: for a limit, and for the pictures that are shown.
    Every process yields the same number of batches, its contiguous part of each; the last one is
    padded with repeats of the last image.

    Args:
        source: the images.
        condition: what is told of each image besides.
        settings: how the images are read; crop, flip and workers are those of training alone.
        batch_size: images of all processes together.
        limit: number of images, the first of that order; None for all.
        start: the first batch to yield.
        share: of this process.

    Yields:
        {"image": uint8 [b, resolution, resolution, 3], "condition": int32 [b, c], "label": int32
        [b], "index": int32 [b], "valid": bool [b]} with b the local batch. Rows that are not valid,
        padding and stand-ins for broken images, must not be counted.

    Raises:
        InputError: arguments out of range; from the iterator, a broken image.
    """
    local = local_batch_size(batch_size, share)
    order = evaluation_order(len(source), limit)
    read = _ReadCentre(_Read(source, settings.on_broken), condition, settings.resolution)
    batch = _EvaluationBatch(read, order, batch_size, share.index * local, local)
    batches = max(-(-len(order) // batch_size), start)
    return deliver(grain.MapDataset.range(start, batches).map(batch), workers=0)


def evaluation_order(count: int, limit: int | None = None) -> np.ndarray:
    """Indices of `count` images as `evaluation_batches` takes them: the first `limit` of these."""
    return np.random.default_rng(0).permutation(count)[:limit]


# An example, its index, and under "broken" the messages of the broken images that it stands in for;
# then its image at the resolution of a batch, its condition and its label.
_Element = dict[str, Any]


# Classes rather than closures in what follows, because worker processes receive them pickled.
@dataclasses.dataclass(frozen=True)
class _Read:
    source: Source
    on_broken: OnBroken

    def __call__(self, index: int) -> _Element:
        count = len(self.source)
        broken: list[str] = []
        for offset in range(count):
            try:
                example = self.source[(index + offset) % count]
            except BrokenImageError as error:
                if self.on_broken == "error":
                    raise
                broken.append(str(error))
            else:
                return {**example, "index": (index + offset) % count, "broken": broken}
        raise InputError(f"none of the {count} images can be read; the first: {broken[0]}")


@dataclasses.dataclass(frozen=True)
class _Augment:
    condition: Condition
    settings: DataSettings

    def __call__(self, element: _Element, rng: np.random.Generator) -> _Element:
        image = _augmented(element["image"], self.settings, rng)
        return _row(element, image, self.condition.encode(element, rng))


def _augmented(image: np.ndarray, settings: DataSettings, rng: np.random.Generator) -> np.ndarray:
    """An image as an epoch sees it."""
    if settings.crop == "random":
        image = random_crop(image, settings.resolution, rng, settings.min_scale)
    else:
        image = center_crop(image, settings.resolution)
    return random_flip(image, rng) if settings.flip else image


@dataclasses.dataclass(frozen=True)
class _ReadViews:
    read: _Read
    settings: DataSettings
    views: int
    seed: int

    def __call__(self, index: int) -> _Element:
        element = self.read(index)
        if enumerated_views(self.settings) is None:
            rngs = (np.random.default_rng((self.seed, index, view)) for view in range(self.views))
            views = [_augmented(element["image"], self.settings, rng) for rng in rngs]
        else:
            image = center_crop(element["image"], self.settings.resolution)
            # In the order in which `drawn_view` numbers them.
            views = [image[:, ::-1], image] if self.settings.flip else [image]
        return {**element, "image": np.stack(views)}


@dataclasses.dataclass(frozen=True)
class _ReadCentre:
    read: _Read
    condition: Condition
    resolution: int

    def __call__(self, index: int) -> _Element:
        element = self.read(index)
        image = center_crop(element["image"], self.resolution)
        return _row(element, image, self.condition.encode(element))


def _row(element: _Element, image: np.ndarray, condition: np.ndarray) -> _Element:
    """A row of a batch."""
    label, broken = element["label"], element["broken"]
    return {"image": image, "condition": condition, "label": label, "broken": broken}


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    elements: grain.MapDataset
    batch_size: int
    offset: int
    local: int

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size + self.offset
        return _stack([self.elements[first + row] for row in range(self.local)])


@dataclasses.dataclass(frozen=True)
class _EvaluationBatch:
    read: _ReadCentre
    order: np.ndarray
    batch_size: int
    offset: int
    local: int

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size + self.offset
        places = range(first, first + self.local)
        count = len(self.order)
        indices = [int(self.order[min(place, count - 1)]) for place in places]
        rows = {index: self.read(index) for index in set(indices)}
        chosen = [rows[index] for index in indices]
        valid = [
            place < count and not row["broken"] for place, row in zip(places, chosen, strict=True)
        ]
        return {
            **_stack(chosen),
            "label": np.array([row["label"] for row in chosen], np.int32),
            "index": np.array(indices, np.int32),
            "valid": np.array(valid),
        }


@dataclasses.dataclass(frozen=True)
class _ViewBatch:
    read: _ReadViews
    indices: Sequence[int]
    batch_size: int
    offset: int
    local: int

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size + self.offset
        last = len(self.indices) - 1
        places = [min(place, last) for place in range(first, first + self.local)]
        rows = {place: self.read(self.indices[place]) for place in set(places)}
        chosen = [rows[place] for place in places]
        return {
            "image": np.stack([row["image"] for row in chosen]),
            "label": np.array([row["label"] for row in chosen], np.int32),
            "index": np.array([row["index"] for row in chosen], np.int32),
            "captions": [row["captions"] for row in chosen],
            "broken": _broken(chosen),
        }


def _stack(elements: list[_Element]) -> dict[str, Any]:
    names = [name for name, value in elements[0].items() if isinstance(value, np.ndarray)]
    arrays = {name: np.stack([element[name] for element in elements]) for name in names}
    return {**arrays, "broken": _broken(elements)}


def _broken(elements: list[_Element]) -> list[str]:
    return [message for element in elements for message in element["broken"]]
