"""Configs become objects, and what is wrong in them is named together with what is right."""

import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from vqjax.errors import InputError, did_you_mean
from vqjax.quantizers import VectorQuantizer
from vqjax.registry import build, check_names, from_fields
from vqjax.settings import check_settings
from vqjax.tokenizers import TOKENIZERS, build_tokenizer
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN


@dataclasses.dataclass
class Circle:
    radius: float
    center: tuple = (0, 0)
    style: Literal["solid", "dashed"] = "solid"
    area: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass
class Square:
    side: float = 1.0


SHAPES = {"circle": Circle, "square": Square}


def refusal(*args, **kwargs):
    """The message, one line of it."""
    with pytest.raises(InputError) as error:
        build(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_builds_the_named_class_with_the_other_keys_as_fields():
    config = {"name": "circle", "radius": 2.0, "style": "dashed"}
    assert build("shape", SHAPES, config) == Circle(2.0, style="dashed")
    assert config["name"] == "circle"
    assert build("shape", SHAPES, {"name": "square"}) == Square()
    assert build("shape", SHAPES, {"name": "circle"}, radius=3.0) == Circle(3.0)


def test_lists_become_tuples_however_deep():
    circle = build("shape", SHAPES, {"name": "circle", "radius": 1.0, "center": [1, [2, [3]]]})
    assert circle.center == (1, (2, (3,)))
    assert hash(circle.center)


def test_an_unknown_name_lists_the_valid_ones_and_the_closest():
    message = refusal("shape", SHAPES, {"name": "circel"})
    assert message.startswith("config.shape.name='circel'")
    assert "did you mean 'circle'?" in message and "circle, square" in message
    for config in ({}, {"name": "zzz"}):
        message = refusal("shape", SHAPES, config)
        assert "circle, square" in message and "did you mean" not in message


def test_an_unknown_field_lists_the_valid_ones_and_the_closest():
    message = refusal("shape", SHAPES, {"name": "circle", "radios": 1.0})
    assert message.startswith("config.shape.radios: Circle has no such field")
    assert "did you mean 'radius'?" in message and "center, radius, style" in message
    # Neither what the program computes nor what it gives itself can be set.
    assert "area" not in message
    assert "config.shape.area" in refusal("shape", SHAPES, {"name": "circle", "area": 1.0})
    given = refusal("shape", SHAPES, {"name": "circle", "radius": 1.0}, radius=2.0)
    assert "config.shape.radius" in given and "valid: center, style" in given


def test_an_unknown_choice_lists_the_valid_ones():
    message = refusal("shape", SHAPES, {"name": "circle", "radius": 1.0, "style": "dash"})
    assert message.startswith("config.shape.style='dash'")
    assert "did you mean 'dashed'?" in message and "dashed, solid" in message


def test_what_linen_adds_to_a_module_is_no_field():
    for key in ("name", "parent"):
        with pytest.raises(InputError, match=f"config.q.{key}: .*valid: beta, code_dim"):
            check_names("q", VectorQuantizer, {key: "x"})


def test_a_name_is_a_field_like_any_other_of_what_is_no_module():
    @dataclasses.dataclass
    class Named:
        name: str = "a"

    assert from_fields("n", Named, {"name": "b"}) == Named("b")


def test_did_you_mean_sorts_the_names():
    assert did_you_mean("x", {"b": 1, "a": 2, "c": 3}) == "valid: a, b, c"


def test_tokenizer_of_a_config():
    config = {
        "name": "efficient_vqgan",
        "widths": [32, 64],
        "depths": [1, 2],
        "quantizer": {"num_codes": 16, "learning": "ema"},
    }
    expected = EfficientVQGAN(VectorQuantizer(16, learning="ema"), widths=(32, 64), depths=(1, 2))
    assert build_tokenizer("tokenizer.model", config) == expected
    assert build_tokenizer("tokenizer.model", ConfigDict(config)) == expected
    assert config["quantizer"] == {"num_codes": 16, "learning": "ema"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vqgann"}, f"config.tokenizer.model.name='vqgann': .*{min(TOKENIZERS)}"),
        ({"window_size": 4}, "config.tokenizer.model.window_size: .*did you mean 'window'"),
        (
            {"implementation": "flash"},
            "config.tokenizer.model.implementation='flash': .*cudnn, xla",
        ),
        ({"quantizer": {"codes": 4}}, r"config.tokenizer.model.quantizer.codes: .*num_codes"),
        ({"quantizer": {"learning": "EMA"}}, r"quantizer.learning='EMA': .*ema, gradient"),
        ({"quantizer": {"latent_norm": "layernorm"}}, r"quantizer.latent_norm.*layer, none"),
        (
            {"quantizer": {"restart_below": -0.1}},
            "config.tokenizer.model.quantizer.restart_below=-0.1: 0 or more",
        ),
        ({"window": 0}, r"config.tokenizer.model.window=0: at least 1 is needed"),
    ],
)
def test_a_wrong_tokenizer_is_named(change, message):
    with pytest.raises(InputError, match=message):
        build_tokenizer("tokenizer.model", {"name": "efficient_vqgan", **change})
