"""The flags of all programs that sample: how tokens are drawn, by what candidates are judged."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.features.classifiers import CLASSIFIERS, ImagenetClassifier, imagenet_classifier
from vqjax.samplers.rejection import Rejection, Score


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """What was given.

    Attributes:
        settings: those of `config.sampling`; None where the config's holds.
        classifier: which judges candidates.
        weights: its file, where it does not come with its own.
        score: by what it judges.
    """

    settings: Mapping[str, flags.FlagHolder[Any]]
    classifier: flags.FlagHolder[Any]
    weights: flags.FlagHolder[Any]
    score: flags.FlagHolder[Any]

    @property
    def of_samples(self) -> tuple[flags.FlagHolder[Any], ...]:
        """All but the batch size, which is not of samples alone."""
        settings = (flag for name, flag in self.settings.items() if name != "batch_size")
        return *settings, self.classifier, self.weights, self.score

    def override(self, settings: ConfigDict) -> None:
        """Puts what was given in the place of the config's."""
        for name, flag in self.settings.items():
            if flag.value is not None:
                settings[name] = flag.value

    def build_classifier(self) -> ImagenetClassifier:
        """The classifier, with its weights.

        Raises:
            InputError: as `imagenet_classifier`.
        """
        weights = Path(self.weights.value) if self.weights.value else None
        return imagenet_classifier(self.classifier.value, weights)

    def rejection(
        self, acceptance: float, num_classes: int, labels: Int[np.ndarray, " n"]
    ) -> Rejection | None:
        """What candidates have to pass; None where all do.

        Args:
            acceptance: fraction that is kept, (0, 1].
            num_classes: of the prior; 0 for an unconditional one.
            labels: classes of the wanted images.

        Raises:
            InputError: no such class in ImageNet, or as `build_classifier`.
        """
        if acceptance == 1.0:
            return None
        if self.score.value == "label" and not labels.max() < num_classes == 1000:
            raise InputError(
                "--score=label is by the class of each image, of ImageNet's 1000: this run has"
                f" {num_classes}, and an edit needs --label; give --score=confidence"
            )
        by: Score = "label" if self.score.value == "label" else "confidence"
        return Rejection(acceptance, self.build_classifier(), by)


def define() -> SamplingFlags:
    """Defines the flags; to be called where a program defines its own."""
    settings = {
        "batch_size": flags.DEFINE_integer("batch_size", None, "How many at a time"),
        "steps": flags.DEFINE_integer("steps", None, "Parallel steps in each block"),
        "temperature": flags.DEFINE_float(
            "temperature", None, "Of the softmax codes are drawn from"
        ),
        "top_k": flags.DEFINE_integer("top_k", None, "Draw among the k most likely codes; 0: all"),
        "top_p": flags.DEFINE_float(
            "top_p", None, "Draw among codes of this probability; 1 for all"
        ),
        "choice_temperature": flags.DEFINE_float(
            "choice_temperature", None, "Noise on the confidence by which tokens are kept"
        ),
        "guidance": flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1 for none"),
        "guidance_schedule": flags.DEFINE_enum(
            "guidance_schedule",
            None,
            ["constant", "linear"],
            "linear: grows from 1 over the sampling",
        ),
        "decode_tile": flags.DEFINE_integer(
            "decode_tile", None, "Decode in tiles of so many pixels to save memory; 0: the whole"
        ),
    }
    return SamplingFlags(
        settings,
        flags.DEFINE_enum(
            "classifier",
            "efficientnet_lite1",
            CLASSIFIERS,
            "Which classifier of ImageNet; the projected adversary trains against lite0",
        ),
        flags.DEFINE_string("classifier_weights", None, "resnet101: file of torchvision's weights"),
        flags.DEFINE_enum(
            "score",
            "label",
            ["label", "confidence"],
            "Its probability of the image's class, where classes are ImageNet's 1000; or of the"
            " likeliest",
        ),
    )
