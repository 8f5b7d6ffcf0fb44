"""Flags of all programs that sample: settings of the samplers, and a classifier of candidates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int

from vqjax.errors import InputError
from vqjax.features.classifiers import CLASSIFIERS, ImagenetClassifier, imagenet_classifier
from vqjax.runs.sampling import GenerationSettings
from vqjax.samplers import SAMPLERS
from vqjax.samplers.rejection import Rejection, Score
from vqjax.settings import choices_of, describe_settings


@dataclasses.dataclass(frozen=True)
class SamplingFlags:
    """The flags that sampling programs share.

    Attributes:
        settings: a flag for each setting of `config.sampling`, of whichever sampler; None where the
            config's holds.
        classifier: that candidates are accepted by.
        weights: its file, where it does not come with its own.
        score: of a candidate by the classifier.
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

    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: flag.value for name, flag in self.settings.items() if flag.value is not None}

    def build_classifier(self) -> ImagenetClassifier:
        """The classifier, with its weights.

        Raises:
            InputError: as `imagenet_classifier`.
        """
        weights = Path(self.weights.value) if self.weights.value else None
        return imagenet_classifier(self.classifier.value, weights)

    def rejection(
        self, acceptance: float, classes: int, conditions: Int[np.ndarray, "n c"]
    ) -> Rejection | None:
        """The test that candidates have to pass; None where all do.

        Args:
            acceptance: fraction that is kept, (0, 1].
            classes: of the run; 0 where its prior is told none.
            conditions: of the wanted images.

        Raises:
            InputError: no such class in ImageNet, or as `build_classifier`.
        """
        if acceptance == 1.0:
            return None
        of_imagenet = classes == 1000 and conditions.max() < classes
        if self.score.value == "label" and not of_imagenet:
            raise InputError(
                "--score=label is by the class of each image, of ImageNet's 1000: this run has"
                f" {classes}, and an edit needs --label; give --score=confidence"
            )
        by: Score = "label" if self.score.value == "label" else "confidence"
        return Rejection(acceptance, self.build_classifier(), by)


def define(without: Sequence[str] = ()) -> SamplingFlags:
    """Defines the flags, but for some settings; to be called where a program defines its own."""
    settings: dict[str, flags.FlagHolder[Any]] = {}
    for cls in (GenerationSettings, *(sampler.settings for sampler in SAMPLERS.values())):
        described = describe_settings(cls)
        for field in dataclasses.fields(cls):
            if field.name in described and field.name not in (*settings, *without):
                settings[field.name] = _define(field, f"{described[field.name]} [the config's]")
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


def _define(field: dataclasses.Field, meaning: str) -> flags.FlagHolder[Any]:
    """A flag for a setting, None where it is not given."""
    if choices_of(field):
        return flags.DEFINE_enum(field.name, None, choices_of(field), meaning)
    if field.type is float:
        return flags.DEFINE_float(field.name, None, meaning)
    if field.type is bool:
        return flags.DEFINE_bool(field.name, None, meaning)
    return flags.DEFINE_integer(field.name, None, meaning)
