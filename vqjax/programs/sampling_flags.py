"""Flags of all programs that sample: settings of the samplers, and a classifier of candidates."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import numpy as np
from absl import flags
from jaxtyping import Int

from vqjax.errors import InputError
from vqjax.features.classifiers import CLASSIFIERS, ImagenetClassifier, imagenet_classifier
from vqjax.runs.sampling import GenerationSettings
from vqjax.samplers import SAMPLERS
from vqjax.samplers.rejection import Rejection, Score, check_acceptance
from vqjax.settings import alternatives, choices_of, describe_settings


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
        check_acceptance(acceptance)
        of_imagenet = classes == 1000 and conditions.max() < classes
        if self.score.value == "label" and not of_imagenet:
            raise InputError(
                "--score=label is by the class of each image, of ImageNet's 1000: this run has"
                f" {classes}, and an edit needs --label; give --score=confidence"
            )
        by: Score = "label" if self.score.value == "label" else "confidence"
        return Rejection(acceptance, self.build_classifier(), by)


def define(without: Sequence[str] = (), values: flags.FlagValues = flags.FLAGS) -> SamplingFlags:
    """Defines the flags; to be called where a program defines its own.

    Args:
        without: settings that get no flag.
        values: the flags that they join; those of the process.

    Raises:
        TypeError: a setting of a type that no flag has, or of two types.
    """
    owners = {name: sampler.settings for name, sampler in SAMPLERS.items()}
    settings = {
        name: _define(name, fields, values)
        for name, fields in _fields({"": GenerationSettings, **owners}).items()
        if name not in without
    }
    return SamplingFlags(
        settings,
        flags.DEFINE_enum(
            "classifier",
            "efficientnet_lite1",
            CLASSIFIERS,
            "Which classifier of ImageNet; the projected adversary trains against lite0",
            values,
        ),
        flags.DEFINE_string(
            "classifier_weights", None, "resnet101: file of torchvision's weights", values
        ),
        flags.DEFINE_enum(
            "score",
            "label",
            ["label", "confidence"],
            "Its probability of the image's class, where classes are ImageNet's 1000; or of the"
            " likeliest",
            values,
        ),
    )


def _fields(owners: Mapping[str, type]) -> dict[str, dict[str, tuple[dataclasses.Field, str]]]:
    """By name of each setting and by its owners: the field, and what it means there."""
    found: dict[str, dict[str, tuple[dataclasses.Field, str]]] = {}
    for owner, cls in owners.items():
        described = describe_settings(cls)
        for field in dataclasses.fields(cls):
            if field.name in described:
                found.setdefault(field.name, {})[owner] = field, described[field.name]
    return found


def _define(
    name: str, fields: Mapping[str, tuple[dataclasses.Field, str]], values: flags.FlagValues
) -> flags.FlagHolder[Any]:
    """One flag for the settings of a name, None where it is not given.

    Its choices are those of all of them: the sampler of the run refuses what it does not have.
    """
    kinds = {_kind(field) for field, _ in fields.values()}
    if len(kinds) > 1:
        raise TypeError(f"the setting {name} has another type in each of {', '.join(fields)}")
    meanings = {meaning for _, meaning in fields.values()}
    if len(meanings) > 1:
        meanings = {f"{owner}: {meaning}" for owner, (_, meaning) in fields.items()}
    meaning = f"{'; '.join(sorted(meanings))} [the config's]"
    (kind,) = kinds
    if kind is Literal:
        choices = dict.fromkeys(c for field, _ in fields.values() for c in choices_of(field))
        return flags.DEFINE_enum(name, None, choices, meaning, values)
    return _FLAGS[kind](name, None, meaning, flag_values=values)


_FLAGS: Mapping[Any, Callable[..., flags.FlagHolder[Any]]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _kind(field: dataclasses.Field) -> Any:
    """The type of a setting, Literal for one of choices; None besides is no matter."""
    kinds = [t for t in alternatives(field.type) if t is not type(None)]
    kind = get_origin(kinds[0]) or kinds[0]
    if len(kinds) > 1 or not (kind is Literal or kind in _FLAGS):
        raise TypeError(f"the setting {field.name} is of {field.type}, which no flag can give")
    return kind
