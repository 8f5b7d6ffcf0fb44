"""Metrics of a set of images against a reference, with their uncertainty."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.evaluation.metrics.frechet import (
    FrechetTo,
    bootstrap,
    counts_up_to,
    distance_by_count,
    fit,
    rank_warning,
)
from vqjax.evaluation.metrics.inception_score import inception_score
from vqjax.evaluation.metrics.kernel_distance import kernel_distance
from vqjax.evaluation.metrics.manifold import knn_accuracy, precision_recall
from vqjax.evaluation.references import Reference
from vqjax.evaluation.results import Measurements

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics of a set of images; part of the protocol.

    Attributes:
        counts: numbers of images at which the Fréchet distance is taken, for its extrapolation.
        bootstrap: sets that its standard error is of; 0 leaves it out.
        kernel_subsets: pairs of subsets of the kernel distance.
        kernel_subset_size: images in each.
        neighbours: of precision and recall.
        manifold_images: at most so many of each set make its manifold, drawn without replacement.
        splits: of the Inception Score.
        class_neighbours: that vote on the class of an image.
        seed: of all draws.
    """

    counts: int = 8
    bootstrap: int = 20
    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    neighbours: int = 3
    manifold_images: int = 10_000
    splits: int = 10
    class_neighbours: int = 5
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class SetMetrics:
    """Metrics of sets of images against a reference, on the features of a network.

    Attributes:
        reference: the images to compare with.
        network: whose features they are.
        settings: how the metrics are taken.
    """

    reference: Reference
    network: FeatureNetwork
    settings: MetricSettings

    def distances(self, features: Float[np.ndarray, "n d"], prefix: str = "") -> Measurements:
        """Fréchet and kernel distance to the reference.

        Args:
            features: one row an image.
            prefix: of the metrics' names: "r" for reconstructions.

        Raises:
            InputError: features of another dimension, not finite, or of fewer than 2 images.
        """
        found, settings, reference = Measurements(), self.settings, self.reference
        log.info("distances of %d images, %d features of each", *features.shape)
        frechet, kernel = (self.network.metric(prefix + name) for name in ("FID", "KID"))
        to = FrechetTo(reference.gaussian)
        if settings.bootstrap and len(features) > 2:
            log.info("%s and %d bootstrap draws", frechet, settings.bootstrap)
            uncertainty = bootstrap(features, to, settings.bootstrap, settings.seed)
            found.metrics[frechet] = uncertainty.distance
            found.spread[frechet] = uncertainty.standard_error
            found.interval[frechet] = list(uncertainty.interval)
        else:
            found.metrics[frechet] = to.samples(features)
        log.info("%s by number of images", frechet)
        counts = counts_up_to(len(features), self.network.dim, settings.counts)
        by_count = distance_by_count(features, to, counts, settings.seed)
        found.by_count = {
            "metric": frechet,
            "counts": list(by_count.counts),
            "distances": list(by_count.distances),
            "infinity": by_count.infinity,
        }
        if by_count.infinity is not None:
            found.metrics[f"{frechet} at infinity"] = by_count.infinity
        if reference.features is not None:
            log.info("%s", kernel)
            most = max(len(features), len(reference.features))
            # Subsets that are all of the images are all the same.
            subsets = settings.kernel_subsets if settings.kernel_subset_size < most else 1
            distance = kernel_distance(
                features, reference.features, subsets, settings.kernel_subset_size, settings.seed
            )
            found.metrics[kernel] = distance.mean
            if subsets > 1:
                found.spread[kernel] = distance.standard_deviation
            found.notes.append(f"{kernel}: subsets drawn {subsets}, images {distance.subset_size}")
        else:
            found.notes.append(f"{kernel}, precision and recall need images, not their statistics")
        counts_of = {"images": len(features), "reference": reference.gaussian.count}
        for name, count in counts_of.items():
            warning = rank_warning(count, self.network.dim)
            if warning:
                found.notes.append(f"{frechet}, {name}: {warning}")
        return found

    def quality(
        self, features: Float[np.ndarray, "n d"], logits: Float[np.ndarray, "n k"]
    ) -> Measurements:
        """Inception Score, precision and recall: of samples, not of reconstructions.

        Args:
            features: one row an image.
            logits: of the network's classes, for each image.
        """
        found, settings, network = Measurements(), self.settings, self.network
        name = network.metric("IS")
        if len(logits) >= settings.splits:
            score = inception_score(logits, settings.splits, settings.seed)
            found.metrics[name], found.spread[name] = score.mean, score.standard_deviation
        else:
            found.notes.append(
                f"{name} needs {settings.splits} images at least, one for each of its parts"
            )
        if self.reference.features is not None:
            log.info("precision and recall")
            ours, theirs = map(self._manifold, (features, self.reference.features))
            if min(len(ours), len(theirs)) > settings.neighbours:
                both = precision_recall(ours, theirs, settings.neighbours)
                found.metrics[network.metric("precision")] = both.precision
                found.metrics[network.metric("recall")] = both.recall
                found.notes.append(
                    f"precision and recall: of {len(ours)} images against {len(theirs)}"
                )
        return found

    def _manifold(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
        """Rows of a manifold, drawn where there are more: the first might all be of one class."""
        most, n = self.settings.manifold_images, len(features)
        if n <= most:
            return features
        rows = np.random.default_rng(self.settings.seed).choice(n, most, replace=False)
        return features[np.sort(rows)]

    def class_accuracy(
        self, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
    ) -> Measurements:
        """Fraction of the images that their nearest neighbours in the reference put in their class.

        Args:
            features: one row an image.
            labels: class that each was made for; without labels of the reference there is no
                number.
        """
        found, reference = Measurements(), self.reference
        if reference.features is None or reference.labels is None:
            return found
        k = min(self.settings.class_neighbours, len(reference.features))
        log.info("class accuracy: nearest of %d references", len(reference.features))
        found.metrics[self.network.metric("class accuracy")] = knn_accuracy(
            features, labels, reference.features, reference.labels, k
        )
        found.notes.append(
            f"class accuracy: by the vote of the {k} nearest of {len(reference.features)} reference"
            " images, which were drawn from the same classes but not necessarily evenly"
        )
        return found

    def per_class(
        self,
        features: Float[np.ndarray, "n d"],
        labels: Int[np.ndarray, " n"],
        class_names: Sequence[str],
        means: dict[str, Float[np.ndarray, " n"]],
        prefix: str = "",
    ) -> Measurements:
        """Fréchet distance of each class to that of the reference, and means of other metrics.

        Args:
            features: one row an image.
            labels: class of each; without labels of the reference there are no distances.
            class_names: by class.
            means: metrics of each image.
            prefix: of the distance's name.

        Returns:
            Those by name of the class; classes without images are left out, and distances of
            fewer than 2.
        """
        found, reference, fewest = Measurements(), self.reference, self.network.dim + 1
        distance = self.network.metric(f"{prefix}FID")
        for label, name in enumerate(class_names):
            own = np.flatnonzero(labels == label)
            if len(own) == 0:
                continue
            row = {"images": float(len(own))}
            row |= {metric: float(np.mean(values[own])) for metric, values in means.items()}
            if reference.features is not None and reference.labels is not None:
                theirs = np.flatnonzero(reference.labels == label)
                count = min(len(own), len(theirs))
                if count >= 2:
                    fewest = min(fewest, count)
                    to = FrechetTo(fit(reference.features[theirs]))
                    row[distance] = to.samples(features[own])
                    row["reference images"] = float(len(theirs))
            found.per_class[name] = row
        warning = rank_warning(fewest, self.network.dim)
        if warning:
            found.notes.append(f"{distance} by class, the smallest: {warning}")
        return found
