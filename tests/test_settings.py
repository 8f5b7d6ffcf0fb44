"""Settings: ranges, choices, defaults and the table of the guide, all from one dataclass."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
from ml_collections import ConfigDict

from vqjax.conditions import CaptionCondition
from vqjax.discriminators import DISCRIMINATORS
from vqjax.errors import FieldError, InputError
from vqjax.priors import PRIORS
from vqjax.quantizers import VectorQuantizer
from vqjax.registry import from_fields
from vqjax.runs.sampling import GenerationSettings
from vqjax.samplers import SAMPLERS
from vqjax.settings import (
    Range,
    check_settings,
    choices_of,
    defaults_of,
    describe_settings,
    setting,
    settings_table,
)
from vqjax.tokenizers import TOKENIZERS
from vqjax.training.codebook import KMeansSettings


@dataclasses.dataclass(frozen=True)
class Bread:
    flour: float = setting(500.0, "in grams", Range(0, above=True))
    loaves: int = setting(1, "number", Range(1, 10))
    crust: Literal["soft", "crisp"] = setting("crisp", "of the loaf")
    salt: float | None = setting(None, "in grams")
    yeast: float | None = setting(None, "in grams", Range(0))
    minutes: int | Literal["auto"] | None = setting("auto", "in the oven", Range(1))
    slices: tuple[int, ...] = setting((9, 8), "of each loaf", Range(1))
    seeds: tuple[Literal["poppy", "sesame"], ...] = setting((), "on the crust")
    baker: str = "nobody"


@pytest.mark.parametrize(
    ("within", "inside", "outside", "words"),
    [
        (Range(0), (0, 0.0, 7), (-1e-9, math.inf, math.nan), "0 or more"),
        (Range(1), (1, 2), (0, 0.999), "at least 1"),
        (Range(0, above=True), (1e-9,), (0, -1), "above 0"),
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1), "a number in [0, 1]"),
        (Range(0, 1, True), (1e-9, 1), (0,), "a number in (0, 1]"),
        (Range(0, 1, below=True), (0, 0.999), (1,), "a number in [0, 1)"),
        (Range(upper=3), (3, -9), (4, -math.inf), "at most 3"),
        (Range(upper=3, below=True), (2.999,), (3, -math.inf, math.nan), "below 3"),
        (Range(2, 3, True, True), (2.5,), (2, 3), "a number in (2, 3)"),
        (Range(), (0, -1e9), (math.nan, math.inf), "a finite number"),
    ],
)
def test_ranges(within, inside, outside, words):
    assert all(value in within for value in inside)
    assert not any(value in within for value in outside)
    assert str(within) == words


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flour": 0.0}, r"^flour=0.0: above 0 is needed"),
        ({"loaves": 11}, r"^loaves=11: a number in \[1, 10\] is needed"),
        ({"loaves": True}, r"^loaves=True: "),
        ({"loaves": "two"}, r"^loaves='two': "),
        ({"loaves": 2.5}, r"^loaves=2.5: a whole number is needed"),
        ({"flour": math.nan}, r"^flour=nan: above 0 is needed"),
        ({"yeast": -1.0}, r"^yeast=-1.0: 0 or more is needed"),
        ({"minutes": 0}, r"^minutes=0: at least 1 or 'auto' is needed"),
        ({"minutes": 1.5}, r"^minutes=1.5: a whole number is needed"),
        ({"minutes": "few"}, r"^minutes='few': at least 1 or 'auto' is needed"),
        ({"slices": (9, 0)}, r"^slices has 0: at least 1 is needed"),
        ({"slices": (2.5,)}, r"^slices has 2.5: a whole number is needed"),
        ({"seeds": ("poppy", "sesam")}, r"^seeds has 'sesam': did you mean 'sesame'\? valid: po"),
        ({"slices": 9}, r"^slices=9: a list is needed"),
        ({"crust": "crips"}, r"^crust='crips': did you mean 'crisp'\? valid: crisp, soft"),
    ],
)
def test_a_value_out_of_its_range_is_named(fields, message):
    with pytest.raises(FieldError, match=message):
        check_settings(dataclasses.replace(Bread(), **fields))
    check_settings(Bread())
    check_settings(Bread(flour=1, yeast=0.5, minutes=40, slices=(), seeds=("sesame", "poppy")))
    check_settings(Bread(minutes=None))


def test_a_number_that_may_not_be_none_is_not():
    with pytest.raises(FieldError, match=r"^loaves=None: "):
        check_settings(Bread(loaves=None))


MODELS = [model for models in (TOKENIZERS, PRIORS, DISCRIMINATORS) for model in models.values()]


@pytest.mark.parametrize("owner", MODELS)
def test_the_fields_of_every_model_have_a_meaning_and_a_range(owner):
    """But for those that a config cannot give; bad numbers and choices are refused by name."""
    given = {"quantizer": VectorQuantizer(8, 4), "num_codes": 8, "grid": (4, 4), "num_ids": 0}
    fields = {f.name: f for f in dataclasses.fields(owner) if f.name not in ("parent", "name")}
    given = {name: value for name, value in given.items() if name in fields}
    assert owner(**given)
    for name in fields.keys() - given.keys():
        within, choices = fields[name].metadata["range"], choices_of(fields[name])
        assert fields[name].metadata["meaning"]
        assert (within or choices) or fields[name].type is bool, name
        if fields[name].type is not bool:
            wrong = (math.nan,) if isinstance(fields[name].default, tuple) else math.nan
            with pytest.raises(InputError, match=f"^config.m.{name}( has |=)nan"):
                from_fields("m", owner, {name: wrong}, **given)


def test_defaults_are_those_of_the_dataclass_and_may_be_overridden():
    defaults = defaults_of(Bread)
    assert defaults.to_dict() == {"flour": 500.0, "loaves": 1, "crust": "crisp"} | {
        "salt": None,
        "yeast": None,
        "minutes": "auto",
        "slices": (9, 8),
        "seeds": (),
    }
    # As on the command line.
    defaults.salt = 9.0
    for name in ("loaves", "yeast"):
        with pytest.raises(TypeError):
            defaults[name] = "two"
    bread = Bread(**ConfigDict(defaults))
    assert bread.salt == 9.0 and bread.yeast is None


def test_the_meaning_of_every_setting_is_told_with_its_range():
    assert describe_settings(Bread) == {
        "flour": "in grams; above 0",
        "loaves": "number; a number in [1, 10]",
        "crust": "of the loaf; soft or crisp",
        "salt": "in grams",
        "yeast": "in grams; 0 or more",
        "minutes": "in the oven; at least 1 or auto",
        "slices": "of each loaf; at least 1",
        "seeds": "on the crust; poppy or sesame",
    }


def test_the_table_has_a_row_for_every_setting():
    assert settings_table(Bread).splitlines() == [
        "| setting | default | meaning |",
        "| --- | --- | --- |",
        "| `flour` | `500.0` | in grams; above 0 |",
        "| `loaves` | `1` | number; a number in [1, 10] |",
        "| `crust` | `crisp` | of the loaf; soft or crisp |",
        "| `salt` | `None` | in grams |",
        "| `yeast` | `None` | in grams; 0 or more |",
        "| `minutes` | `auto` | in the oven; at least 1 or auto |",
        "| `slices` | `(9, 8)` | of each loaf; at least 1 |",
        "| `seeds` | `()` | on the crust; poppy or sesame |",
    ]


@pytest.mark.parametrize(
    "cls",
    [
        CaptionCondition,
        GenerationSettings,
        KMeansSettings,
        *(s.settings for s in SAMPLERS.values()),
    ],
)
def test_the_guide_has_the_table_of_the_settings(cls):
    """So that it cannot say anything else than the code; paste `settings_table(cls)` if it does."""
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    assert settings_table(cls) in guide
