"""Defaults and arguments of all configs."""

from typing import Any

from ml_collections import ConfigDict

from vqjax.conditions import CaptionCondition
from vqjax.data import DataSettings
from vqjax.data.token_sets import TokenSettings
from vqjax.errors import InputError, did_you_mean
from vqjax.losses.reconstruction import LossWeights
from vqjax.runs.sampling import GenerationSettings
from vqjax.runs.stages import StageSettings
from vqjax.samplers import SAMPLERS
from vqjax.settings import defaults_of
from vqjax.training.adversary import AdversarialSettings
from vqjax.training.codebook import KMeansSettings
from vqjax.training.frechet_monitor import FrechetSettings
from vqjax.training.optimizers import OptimizerSettings


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """Reads "key=value,..." into a copy of `defaults`; each value takes the type of its default.

    Raises:
        InputError: unknown key (the valid ones are listed) or a value of another type.
    """
    parsed = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise InputError(f"config argument {key!r}: {did_you_mean(key, defaults)}")
        kind = type(defaults[key])
        try:
            if kind is bool:
                parsed[key] = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            else:
                parsed[key] = kind(value)
        except (KeyError, ValueError):
            raise InputError(
                f"config argument {item!r}: {key} takes a value of type {kind.__name__},"
                f" like {key}={defaults[key]}"
            ) from None
    return ConfigDict(parsed)


def one_of(key: str, value: Any, table: dict[Any, Any]) -> Any:
    """`table[value]` for a config argument; InputError with the valid values otherwise."""
    if value not in table:
        valid = ", ".join(str(v) for v in table)
        raise InputError(f"config argument {key}={value}: valid: {valid}")
    return table[value]


def get_config() -> ConfigDict:
    """The defaults: an experiment's `get_config(arg)` starts from them and says what differs."""
    config = ConfigDict()
    config.seed = 0
    # Run in this order in one workdir; finished ones are skipped.
    config.stages = ("tokenizer", "prior")
    # Steps of a stage to trace for xprof or TensorBoard: "10:13" for steps 10, 11 and 12, to the
    # folder "profile" of that stage. "" for none.
    config.profile = ""

    config.data = defaults_of(DataSettings)
    config.data.source = ConfigDict({"name": "openmoji"})
    # What the prior is told of an image: "none", "class", or a caption (`caption_condition`).
    config.condition = ConfigDict({"name": "none"})

    # Devices along each axis; -1 takes all that are left. Batches are split over data x fsdp,
    # parameters over fsdp (largest divisible axis) and tensor (heads and MLP of transformers).
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.tokenizer = tokenizer_stage()
    config.prior = prior_stage("multigrained")
    config.sampling = sampling("multigrained")
    return config


def tokenizer_stage() -> ConfigDict:
    """The defaults of a stage that trains a tokenizer."""
    stage = _stage("tokenizer")
    stage.model = ConfigDict({"name": "efficient_vqgan"})
    stage.loss = defaults_of(LossWeights)
    stage.discriminator = defaults_of(AdversarialSettings)
    # none, patchgan, projected or stylegan2
    stage.discriminator.model = ConfigDict({"name": "none"})
    stage.discriminator.optimizer = defaults_of(OptimizerSettings)
    stage.kmeans = defaults_of(KMeansSettings)
    stage.best_metric = "psnr"
    return stage


def decoder_stage(tokenizer: ConfigDict) -> ConfigDict:
    """The defaults of a stage that trains a decoder on the codes of a tokenizer's stage."""
    stage = tokenizer.copy_and_resolve_references()
    stage.kind = "decoder"
    stage.tokenizer = "tokenizer"  # the stage whose encoder and codebook are kept
    stage.loss.vq = 0.0
    del stage.kmeans
    return stage


def prior_stage(name: str) -> ConfigDict:
    """The defaults of a stage that trains a prior of this name."""
    stage = _stage("prior")
    stage.tokenizer = "tokenizer"  # the stage whose codes it models
    stage.model = ConfigDict({"name": name})
    stage.data = defaults_of(TokenSettings)
    stage.best_mode = "min"
    return stage


def sampling(name: str) -> ConfigDict:
    """The defaults of drawing images from a prior of this name."""
    config = defaults_of(SAMPLERS[name].settings)
    config.update(defaults_of(GenerationSettings))
    return config


def caption_condition() -> ConfigDict:
    """The defaults of telling the prior a caption of each image."""
    config = defaults_of(CaptionCondition)
    config.name = CaptionCondition.name
    return config


def folder() -> ConfigDict:
    """A source: the images of a folder, a tenth held out unless its settings say otherwise."""
    return ConfigDict(
        {
            "name": "folder",
            "path": "",
            "train_folder": "",
            "validation_folder": "",
            "train_range": "",
            "validation_range": "",
            "validation_fraction": 0.1,
            "split_by_content": False,
        }
    )


def sorted_folder(train_images: int, images: int) -> ConfigDict:
    """A source: the images of a folder by their sorted names, the first ones to train on."""
    return ConfigDict(
        {
            "name": "folder",
            "path": "",
            "train_range": f"0:{train_images}",
            "validation_range": f"{train_images}:{images}",
            "split_by_content": False,
        }
    )


def _stage(kind: str) -> ConfigDict:
    """The settings that every stage has."""
    stage = defaults_of(StageSettings)
    stage.kind = kind
    stage.optimizer = defaults_of(OptimizerSettings)
    stage.frechet = defaults_of(FrechetSettings)
    return stage
