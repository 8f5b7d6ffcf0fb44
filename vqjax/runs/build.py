"""From a config to its models, its condition and its settings: only to those that are asked for."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.conditions import Condition, DescribedSource, condition_class
from vqjax.data import DataSettings
from vqjax.data.token_sets import TokenSettings
from vqjax.errors import InputError, did_you_mean
from vqjax.priors import Prior, build_prior
from vqjax.runs.sampling import GenerationSettings, Sampling
from vqjax.runs.stages import all_stages, decoder_of, stage_settings, tokenizer_of
from vqjax.samplers import SAMPLERS
from vqjax.samplers.guidance import check_guidance
from vqjax.settings import check_values
from vqjax.tokenizers import Tokenizer, build_tokenizer
from vqjax.tokenizers.base import same_codes

# Top-level keys of a config that are no stages; "sampling" is there if a prior is.
_KEYS = ("seed", "stages", "data", "mesh", "condition", "profile")


def check_config(config: ConfigDict) -> None:
    """Checks the settings of all stages, trained or not, and of what belongs to none.

    A setting of the data, the stages or the sampling that the config leaves out is filled in with
    its default. The parts of a stage are checked where they are built.

    Raises:
        InputError: a missing or unknown key, an unknown kind of stage, or a setting out of its
            range.
    """
    for key in _KEYS:
        if key not in config:
            raise InputError(f"config.{key} is missing: every run has {', '.join(_KEYS)}")
    _check_run(config)
    stages = all_stages(config)
    valid = (*_KEYS, "sampling", *stages)
    for key in config:
        if key not in valid:
            hint = "a stage has a kind" if isinstance(config[key], ConfigDict) else ""
            raise InputError(
                f"config.{key}: there is no such setting; {did_you_mean(key, valid)}"
                f"{hint and f' ({hint})'}"
            )
    _fill_in(config.data, data_settings(config))
    for name in stages:
        _fill_in(config[name], stage_settings(name, config[name]))
        if config[name].kind == "prior":
            tokens = token_settings(config, name)
            with config[name].unlocked():
                config[name].data = config[name].get("data", ConfigDict())
            _fill_in(config[name].data, tokens)
            if "sampling" not in config:
                raise InputError(
                    f"config.sampling is missing: the prior {name!r} is sampled with it"
                )
            sampling = sampling_settings(config, name)
            _fill_in(config.sampling, sampling.sampler)
            _fill_in(config.sampling, sampling.generation)


def _check_run(config: ConfigDict) -> None:
    """Checks the settings of the run that are of no part."""
    seed = config.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"config.seed={seed!r}: a whole number from 0 to {2**32 - 1} is needed")
    if not isinstance(config.stages, (list, tuple)) or not all(
        isinstance(name, str) for name in config.stages
    ):
        raise InputError(f"config.stages={config.stages!r}: names of stages are needed, in a tuple")
    for name in ("data", "mesh", "condition"):
        if not isinstance(config[name], ConfigDict):
            raise InputError(f"config.{name}={config[name]!r}: a dict of settings is needed")
    if not isinstance(config.profile, str):
        raise InputError(f"config.profile={config.profile!r}: a text is needed, '' for none")


def _fill_in(config: ConfigDict, settings: Any) -> None:
    """Gives a sub-config the values of those settings that it does not have."""
    with config.unlocked():
        for field in dataclasses.fields(settings):
            if field.name not in config:
                config[field.name] = getattr(settings, field.name)


def data_settings(config: ConfigDict) -> DataSettings:
    """The settings by which the images of a run are read.

    Raises:
        InputError: an unknown setting, or one out of its range.
    """
    given = {key: value for key, value in config.data.items() if key != "source"}
    return registry.from_fields("data", DataSettings, given)


def token_settings(config: ConfigDict, stage: str) -> TokenSettings:
    """Where the tokens come from that a prior's stage is trained on.

    Raises:
        InputError: an unknown setting, or one out of its range.
    """
    return registry.from_fields(f"{stage}.data", TokenSettings, config[stage].get("data", {}))


def build_condition(config: ConfigDict, source: DescribedSource) -> Condition:
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
    with registry.named_in("condition"):
        # Before the class sees them, which may count on their types.
        check_values(cls, fields)
        return cls.of(source, **fields)


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
    model.grid(side, side)
    tokenizer = tokenizer_of(config, stage)
    theirs = build_tokenizer(f"{tokenizer}.model", config[tokenizer].model)
    if not same_codes(model, theirs):
        raise InputError(
            f"config.{decoder}.model makes other tokens than config.{tokenizer}.model: a decoder"
            " keeps the encoder and the codebook of its tokenizer, so set the same, but for what"
            " the decoder alone has"
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
    """The sampling settings of a run, as `sampling_settings`, for its prior.

    Raises:
        InputError: as `sampling_settings`, or a setting that does not fit the prior.
    """
    sampling = sampling_settings(config, stage, given)
    with registry.named_in("sampling"):
        check_guidance(prior, sampling.sampler)
    return sampling


def sampling_settings(
    config: ConfigDict, stage: str, given: Mapping[str, Any] | None = None
) -> Sampling:
    """The sampling settings of a run.

    Args:
        config: of the run.
        stage: the prior's name.
        given: settings that take the place of the config's.

    Raises:
        InputError: an unknown setting, or one out of its range.
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
    return Sampling(settings, registry.from_fields("sampling", GenerationSettings, generation))
