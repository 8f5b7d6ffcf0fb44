"""Flags of the samplers' settings, with a second sampler beside the real one."""

import dataclasses
from typing import Literal

import pytest
from absl import flags

from vqjax.programs import sampling_flags
from vqjax.samplers import SAMPLERS, Sampler, TokenSampling
from vqjax.samplers.multigrained import MultiGrainedSampling
from vqjax.settings import Range, setting


@dataclasses.dataclass(frozen=True)
class LineSampling(TokenSampling):
    """Of a sampler that works line by line."""

    steps: int = setting(3, "lines at a time", Range(1, 20))
    guidance_schedule: Literal["constant", "cosine"] = setting("constant", "over the lines")
    stop: float | None = setting(None, "confidence that ends it", Range(0))
    order: str = setting("down", "of the lines")
    mirror: bool = setting(False, "lines in both directions")


@pytest.fixture
def second(monkeypatch):
    """Registers a sampler with some settings."""

    def register(settings):
        monkeypatch.setitem(SAMPLERS, "line", Sampler(settings, lambda *_: None))

    return register


def parsed(*args):
    values = flags.FlagValues()
    defined = sampling_flags.define(without=("num_images",), values=values)
    values(["sample", *args])
    return defined, values


def test_settings_of_one_name_are_one_flag_that_takes_what_either_takes(second):
    second(LineSampling)
    for choice, cls in (("cosine", LineSampling), ("linear", MultiGrainedSampling)):
        given = parsed("--steps=9", f"--guidance_schedule={choice}")[0].given()
        assert given == {"steps": 9, "guidance_schedule": choice}
        assert cls(**given).guidance_schedule == choice
    with pytest.raises(flags.IllegalFlagValueError, match=r"<constant\|linear\|cosine>"):
        parsed("--guidance_schedule=square")


def test_a_meaning_names_the_sampler_where_they_differ(second):
    second(LineSampling)
    _, values = parsed()
    assert values["steps"].help == (
        "line: lines at a time; a number in [1, 20]; masked: parallel steps in which the whole map"
        " is filled; at least 1; multigrained: parallel steps in each block; at least 1"
        " [the config's]"
    )
    assert values["temperature"].help == (
        "of the softmax that codes are drawn from; above 0 [the config's]"
    )
    assert "num_images" not in values and "batch_size" in values


def test_a_flag_has_the_type_of_its_setting(second):
    second(LineSampling)
    args = ("--stop=0.5", "--order=up", "--mirror", "--top_k=4", "--top_p=0.5")
    given = parsed(*args)[0].given()
    assert given == {"stop": 0.5, "order": "up", "mirror": True, "top_k": 4, "top_p": 0.5}
    assert LineSampling(**given).order == "up"
    for arg in ("--stop=up", "--top_k=1.5", "--steps=few"):
        with pytest.raises(flags.IllegalFlagValueError):
            parsed(arg)
    assert parsed()[0].given() == {}


@pytest.mark.parametrize("annotation", [tuple[int, ...], list, int | str, int | Literal["auto"]])
def test_a_type_that_no_flag_has_is_told_to_the_developer(annotation, second):
    second(dataclasses.make_dataclass("Odd", [("odd", annotation, setting(None, "odd"))]))
    with pytest.raises(TypeError, match="the setting odd is of"):
        parsed()


@pytest.mark.parametrize("annotation", [str, float, Literal["few", "many"]])
def test_one_name_of_two_types_is_told_to_the_developer(annotation, second):
    second(dataclasses.make_dataclass("Other", [("steps", annotation, setting("few", "many"))]))
    with pytest.raises(
        TypeError, match="steps has another type in each of multigrained, masked, line"
    ):
        parsed()
