"""From a config to its models, its condition and its settings: only to those that are asked for."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.conditions import Condition, LabelledSource, condition_class
from vqjax.data import DataSettings
from vqjax.errors import FieldError, InputError
from vqjax.priors import Prior, build_prior
from vqjax.registry import did_you_mean
from vqjax.runs.sampling import GenerationSettings, Sampling
from vqjax.runs.stages import all_stages, decoder_of, tokenizer_of
from vqjax.samplers import SAMPLERS
from vqjax.samplers.guidance import check_guidance
from vqjax.tokenizers import Tokenizer, build_tokenizer

# Top-level keys of a config that are no stages.
_KEYS = ("seed", "stages", "data", "mesh", "condition", "sampling", "profile")


def check_config(config: ConfigDict) -> None:
    """Checks what belongs to no stage.

    Raises:
        InputError: an unknown key, an unknown kind of stage, or data settings out of their range.
    """
    stages = all_stages(config)
    for key in config:
        if key not in (*_KEYS, *stages):
            hint = "a stage has a kind" if isinstance(config[key], ConfigDict) else ""
            raise InputError(
                f"config.{key}: there is no such setting; {did_you_mean(key, (*_KEYS, *stages))}"
                f"{hint and f' ({hint})'}"
            )
    data = {key: value for key, value in config.data.items() if key != "source"}
    registry.from_fields("data", DataSettings, data)


def build_condition(config: ConfigDict, source: LabelledSource) -> Condition:
    """The condition of a run, made from its training set.

    Raises:
        InputError: unknown name or field, or a value that the condition refuses.
    """
    fields = config.condition.to_dict()
    cls = condition_class(fields.pop("name", None))
    # The first parameter is the source.
    valid = list(inspect.signature(cls.of).parameters)[1:]
    for key in fields:
        if key not in valid:
            hint = did_you_mean(key, valid) if valid else "it has none"
            raise InputError(
                f"config.condition.{key}: the condition {cls.name!r} has no such field; {hint}"
            )
    try:
        return cls.of(source, **fields)
    except FieldError as e:
        raise InputError(f"config.condition.{e}") from None


def build_stage_tokenizer(config: ConfigDict, stage: str) -> Tokenizer:
    """The model that makes a stage's tokens and turns them into images.

    It has the encoder and the codebook of the stage's tokenizer, and the decoder of the last stage
    that trains one on its codes.

    Raises:
        InputError: a config that names no model, or images that it cannot take.
    """
    decoder = decoder_of(config, stage)
    model = build_tokenizer(f"{decoder}.model", config[decoder].model)
    side = config.data.resolution
    grid = model.grid(side, side)
    tokenizer = tokenizer_of(config, stage)
    if decoder != tokenizer:
        codes = build_tokenizer(f"{tokenizer}.model", config[tokenizer].model)
        theirs = codes.grid(side, side), codes.quantizer
        if (grid, model.quantizer) != theirs:
            raise InputError(
                f"config.{decoder}.model makes other tokens than config.{tokenizer}.model: a"
                " decoder keeps the encoder and the codebook of its tokenizer, so set the same"
            )
    return model


def build_stage_prior(config: ConfigDict, stage: str, condition: Condition) -> Prior:
    """The prior of a stage.

    Raises:
        InputError: as `build_prior`, or a tokenizer that it cannot take.
    """
    tokenizer = build_stage_tokenizer(config, stage)
    side = config.data.resolution
    model = config[stage].model
    prior = build_prior(
        f"{stage}.model", model, tokenizer.num_codes, tokenizer.grid(side, side), condition.num_ids
    )
    if prior.token_kind not in ("any", tokenizer.token_kind):
        raise InputError(
            f"config.{stage}.model.name={model.name!r} takes {prior.token_kind} tokens, but the"
            f" tokenizer {type(tokenizer).__name__} makes {tokenizer.token_kind} ones:"
            " choose a pair that agrees"
        )
    return prior


def build_sampling(
    config: ConfigDict, stage: str, prior: Prior, given: Mapping[str, Any] | None = None
) -> Sampling:
    """The sampling settings of a run.

    Args:
        config: of the run.
        stage: the prior's name.
        prior: that is sampled.
        given: settings that take the place of the config's.

    Raises:
        InputError: an unknown setting, one out of its range, or one that does not fit the prior.
    """
    name = config[stage].model.name
    if name not in SAMPLERS:
        raise InputError(f"the prior {name!r} has no sampler; {did_you_mean(name, SAMPLERS)}")
    cls = SAMPLERS[name].settings
    fields = config.sampling.to_dict() | dict(given or {})
    own = {f.name for f in dataclasses.fields(GenerationSettings)}
    valid = own | {f.name for f in dataclasses.fields(cls)}
    for key in fields:
        if key not in valid:
            raise InputError(
                f"config.sampling.{key}: the sampler of {name} has no such setting;"
                f" {did_you_mean(key, valid)}"
            )
    generation = {key: value for key, value in fields.items() if key in own}
    sampler = {key: value for key, value in fields.items() if key not in own}
    settings: Any = registry.from_fields("sampling", cls, sampler)
    try:
        check_guidance(prior, settings)
    except FieldError as e:
        raise InputError(f"config.sampling.{e}") from None
    return Sampling(settings, registry.from_fields("sampling", GenerationSettings, generation))
