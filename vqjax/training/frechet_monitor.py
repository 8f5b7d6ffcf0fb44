"""The Fréchet distance of few images, at every evaluation in training: to choose a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.evaluation.feature_networks import as_saved
from vqjax.evaluation.metrics.frechet import fit, frechet_distance
from vqjax.evaluation.network_registry import build_network
from vqjax.parallel import to_host


class FrechetMonitor:
    """Gathers features of real and of made images, until there are enough of both.

    Of few images the distance is biased upward, always by about as much: it orders the checkpoints
    of a run, and is not to be compared with that of another number of images.

    Attributes:
        metric: name of the distance.
    """

    def __init__(self, stage: str, config: ConfigDict, prefix: str = ""):
        """Loads the network.

        Args:
            stage: name of the stage, for messages.
            config: `config.<stage>.frechet`, with `images` above 0.
            prefix: of the metric's name: "r" for reconstructions.

        Raises:
            InputError: too few images, an unknown network, no or wrong weights.
        """
        if config.images < 2:
            raise InputError(
                f"config.{stage}.frechet.images={config.images}: 0 for none, or at least 2"
            )
        weights = Path(config.weights) if config.weights else None
        network = build_network(config.network, weights, config.sha256 or None, config.resize)
        self.metric = network.metric(f"{prefix}FID")
        self._images = config.images
        self._variables = network.variables
        self._features: Callable[..., Any] = jax.jit(
            lambda variables, images: network.apply(variables, as_saved(images, "png"))[0]
        )
        self._sets: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    @property
    def batches(self) -> int:
        """The number of batches that were added."""
        return len(self._sets[1])

    @property
    def wants_more(self) -> bool:
        """True while there are too few images."""
        return sum(map(len, self._sets[1])) < self._images

    def add(
        self,
        real: Float[Array, "b H W 3"],
        made: Float[Array, "b H W 3"],
        valid: Bool[np.ndarray, " b"],
    ) -> None:
        """Takes the valid images of a batch, in [-1, 1]; every process has to."""
        for features, images in zip(self._sets, (real, made), strict=True):
            features.append(to_host(self._features(self._variables, images))[valid])

    def distance(self) -> dict[str, float]:
        """The distance between all that were added, by its name; none of fewer than 2 images."""
        real, made = (np.concatenate(features)[: self._images] for features in self._sets)
        self._sets = ([], [])
        return {self.metric: frechet_distance(fit(real), fit(made))} if len(made) > 1 else {}
