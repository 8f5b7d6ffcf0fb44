"""Nearest training images of samples in feature space: they show copies."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from vqjax.data import Source
from vqjax.data.images import center_crop
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.metrics.manifold import nearest
from vqjax.generation.run import Images
from vqjax.pixels import to_float
from vqjax.report.charts import Chart, cumulative
from vqjax.report.gallery import Picture, class_name, picture

log = logging.getLogger(__name__)

_NEIGHBOURS = 5
_BATCH = 32
Batches = Iterable[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Samples with their nearest training images.

    Attributes:
        rows: a sample, its neighbours, their distances.
        chart: distances to the nearest one, of all samples and of held-out images.
        network: whose features are compared.
        scanned: training images that were looked at.
        available: training images that there are.
        held_out: how many held-out images were compared.
        medians: distance to the nearest training image of samples, and of held-out images.
        low: a twentieth of the held-out images is at this distance or nearer.
        near: the part of the samples that is.
        near_held_out: the part of the held-out images that is; more than 0.05 where many are at the
            same distance.
        twins: held-out images with the features of a training image.
    """

    rows: list[tuple[Picture, list[tuple[Picture, float]]]]
    chart: Chart
    network: str
    scanned: int
    available: int
    held_out: int
    medians: tuple[float, float]
    low: float
    near: float
    near_held_out: float
    twins: int


def find(
    network: FeatureNetwork,
    samples: Images,
    shown: Sequence[int],
    training: Source,
    training_batches: Batches,
    held_out_batches: Batches,
    total: int,
) -> Neighbours:
    """Compares samples, and held-out images, with training images.

    Args:
        network: whose features are compared, by Euclidean distance.
        samples: all that were drawn.
        shown: which of them the page shows with their neighbours.
        training: to read the neighbours from.
        training_batches: of it, of `evaluation_batches`.
        held_out_batches: of the validation split.
        total: images in both kinds of batches, for the bar.
    """
    with tqdm(total=total, desc="features", unit="image") as bar:
        references, indices = _features(network, training_batches, bar)
        real, _ = _features(network, held_out_batches, bar)
    drawn, _ = _features(network, _batches(samples), None)
    k = min(_NEIGHBOURS, len(references))
    distances, nearest_rows = nearest(drawn, references, k)
    real_distances = nearest(real, references, 1)[0][:, 0]
    rows = [
        (
            picture(samples[i], "sample"),
            [
                (_training_picture(training, int(indices[row]), samples.shape[1]), float(d))
                for row, d in zip(nearest_rows[i], distances[i], strict=True)
            ],
        )
        for i in shown
    ]
    own = distances[:, 0]
    low = float(np.quantile(real_distances, 0.05))
    chart = cumulative(
        "nearest",
        "Distance to the nearest training image",
        "Copies would show as a curve of the samples to the left of that of the held-out images.",
        "distance to the nearest training image",
        {"samples": own, "held-out images": real_distances},
    )
    return Neighbours(
        rows,
        chart,
        network.name,
        len(references),
        len(training),
        len(real),
        (float(np.median(own)), float(np.median(real_distances))),
        low,
        float(np.mean(own <= low)),
        float(np.mean(real_distances <= low)),
        int(np.count_nonzero(real_distances == 0)),
    )


def _features(
    network: FeatureNetwork, batches: Batches, bar: tqdm | None
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Features of the valid images of all batches, and which images these are."""
    features, indices = [], []
    for batch in batches:
        valid = batch["valid"]
        features.append(np.asarray(network(to_float(batch["image"]))[0])[valid])
        indices.append(batch["index"][valid])
        if bar is not None:
            bar.update(int(valid.sum()))
    return np.concatenate(features), np.concatenate(indices)


def _batches(images: Images) -> Batches:
    """Batches of one size, so that the network is compiled once."""
    for start in range(0, len(images), _BATCH):
        index = np.arange(start, start + _BATCH)
        valid = index < len(images)
        index = np.minimum(index, len(images) - 1)
        yield {"image": images[index], "index": index, "valid": valid}


def _training_picture(source: Source, index: int, side: int) -> Picture:
    example = source[index]
    name = next(iter(example["captions"]), "") or class_name(source.class_names, example["label"])
    alt = f"training image: {name}" if name else "training image"
    return picture(center_crop(example["image"], side), alt)
