"""Pictures of the page: how the samples are chosen and named."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_condition import LettersCondition

from vqjax.conditions import ClassCondition, NoCondition
from vqjax.generation.run import Run
from vqjax.report import gallery
from vqjax.samplers.multigrained import MultiGrainedSampling


class Drawn(Run):
    """A run whose images are blank."""

    condition = None

    def __init__(self, condition):
        self.condition = condition

    def sampling(self, **given):
        return SimpleNamespace(sampler=MultiGrainedSampling())

    def images(self, conditions, sampling, *, seed):
        yield np.zeros((len(conditions), 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("condition", "groups", "classes", "alt"),
    [
        (NoCondition(), 1, 0, "sample"),
        (ClassCondition(("cat", "dog")), 2, 2, "sample of class cat"),
        (ClassCondition(tuple(f"{i:03d}" for i in range(100))), 12, 100, "sample of class 000"),
        # Never one for each word that there is.
        (LettersCondition(2, "".join(map(chr, range(100, 200)))), 12, 0, "sample: d"),
    ],
    ids=["none", "few", "many", "text"],
)
def test_as_many_samples_of_each_condition(condition, groups, classes, alt):
    found = gallery.samples(Drawn(condition), 24, seed=0)
    assert len(found.images) == len(found.names) == 24 and found.classes == classes
    assert [len(pictures) for pictures in found.groups.values()] == [24 // groups] * groups
    assert next(iter(found.groups.values()))[0].alt == alt
