"""The Fréchet distance of few images, at every evaluation in training: to choose a checkpoint."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from vqjax.errors import FieldError
from vqjax.evaluation.feature_networks import as_saved
from vqjax.evaluation.metrics.frechet import fit, frechet_distance
from vqjax.evaluation.network_registry import build_network
from vqjax.features.inception import WEIGHTS, Resize
from vqjax.parallel import to_host
from vqjax.settings import Range, check_settings, setting


@dataclasses.dataclass(frozen=True)
class FrechetSettings:
    """Settings of the distance: `config.<stage>.frechet`.

    Its metric is "rFD-lite1" of a tokenizer's reconstructions, "FD-lite1" of a prior's samples,
    "rFID" and "FID" with inception; `best_metric` may name it, with best_mode "min".

    Raises:
        FieldError: a value out of its range.
    """

    images: int = setting(0, "of each kind, at every evaluation; 0 for no distance", Range(0))
    network: Literal["efficientnet_lite1", "inception"] = setting("efficientnet_lite1", "features")
    weights: str = setting("", "file of inception's weights")
    sha256: str = setting("", "of that file, where it is not the published one")
    resize: Resize = setting("torch", "how inception's images become 299x299")

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)
        if self.images == 1:
            raise FieldError("images=1: 0 for none, or at least 2")
        if self.images and self.network == "inception" and not self.weights:
            raise FieldError(
                f"weights={self.weights!r}: the network inception needs its weights; fetch"
                f" {WEIGHTS.address} and name the file here, or set network=efficientnet_lite1"
            )


class FrechetMonitor:
    """Gathers features of real and of made images, until there are enough of both.

    Of few images the distance is biased upward, always by about as much: it orders the checkpoints
    of a run, and is not to be compared with that of another number of images.

    Attributes:
        metric: name of the distance.
    """

    def __init__(self, settings: FrechetSettings, prefix: str = ""):
        """Loads the network.

        Args:
            settings: with `images` above 0.
            prefix: of the metric's name: "r" for reconstructions.

        Raises:
            InputError: no or wrong weights.
        """
        weights = Path(settings.weights) if settings.weights else None
        network = build_network(settings.network, weights, settings.sha256 or None, settings.resize)
        self.metric = network.metric(f"{prefix}FID")
        self._images = settings.images
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
