"""A config in words and numbers, by shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from vqjax.conditions import Condition, NoCondition
from vqjax.data import build_source
from vqjax.errors import InputError
from vqjax.runs.build import (
    build_condition,
    build_stage_prior,
    build_stage_tokenizer,
    check_config,
)
from vqjax.runs.stages import all_stages, decoder_of, stages_to_train, tokenizer_of
from vqjax.runs.weights import prior_shapes, split_decoder
from vqjax.tokenizers.base import tokenizer_shapes, tokens_shape


def describe(config: ConfigDict, condition: Condition | None = None) -> dict[str, Any]:
    """Stages, models and data of a config.

    Args:
        config: of a run.
        condition: of the run; None for what the data set says, where it is there.

    Returns:
        {"stages": [{"name", "kind", "model", "parameters", "latent_grid", "tokens_per_image",
        "num_codes", "batch_size", "steps", ...}], "train", "resolution", "condition", "classes",
        "data"}: stages as `all_stages`, and in "train" those that are trained; "classes" is how
        many, 0 where the condition is no class. A prior that is conditional on a data set that is
        not there is counted without the embedding of its condition, and says so in "note".

    Raises:
        InputError: as the builders of the models.
    """
    check_config(config)
    side = config.data.resolution
    note = None
    if condition is None:
        condition, note = known_condition(config)
    stages, tokens = [], None
    for name in all_stages(config):
        own = config[name]
        tokenizer = build_stage_tokenizer(config, name)
        tokens = tokens_shape(tokenizer, side)
        shapes = tokenizer_shapes(tokenizer, side)
        frozen = 0
        if own.kind == "prior":
            prior = build_stage_prior(config, name, condition)
            trained = prior_shapes(prior, tokens.codes.shape[1], condition.length)["params"]
        elif own.kind == "decoder":
            trained, rest = split_decoder(tokenizer, shapes)
            frozen = _size(rest["params"])
        else:
            trained = shapes["params"]
        stage = {
            "name": name,
            "kind": own.kind,
            "model": own.model.name,
            "parameters": _size(trained),
            "latent_grid": list(tokens.grid),
            "tokens_per_image": tokens.codes.shape[1],
            "num_codes": tokenizer.num_codes,
            "batch_size": own.batch_size,
            "steps": own.steps,
            "optimizer": own.optimizer.name,
            "learning_rate": own.optimizer.learning_rate,
        }
        if own.kind == "decoder":
            stage["frozen_parameters"] = frozen
        if own.kind != "tokenizer":
            stage["tokenizer"] = tokenizer_of(config, name)
        if own.kind == "prior":
            stage["decoder"] = decoder_of(config, name)
            if note:
                stage["note"] = note
        if own.kind != "prior" and own.discriminator.model.name != "none":
            stage["discriminator"] = own.discriminator.model.name
            stage["discriminator_start"] = own.discriminator.start
        if own.use_from:
            stage["use_from"] = own.use_from
        stages.append(stage)
    return {
        "stages": stages,
        "train": stages_to_train(config),
        "resolution": side,
        "condition": {
            "name": config.condition.name,
            "ids": condition.num_ids,
            "length": condition.length,
        },
        "classes": len(condition.classes),
        "data": config.data.source.to_dict(),
    }


def as_text(described: Mapping[str, Any]) -> str:
    """A description in lines for a person."""
    data = described["data"]
    dataset = f" {data['dataset']}" if data.get("dataset") else ""
    where = next((f" in {data[key]}" for key in ("path", "data_dir") if data.get(key)), "")
    side, name = described["resolution"], described["condition"]["name"]
    told = f"{name}-conditional" if name != "none" else "unconditional"
    if described["classes"]:
        told = f"{described['classes']} classes"
    lines = [f"{data['name']}{dataset}{where}, {side}x{side} pixels, {told}"]
    for stage in described["stages"]:
        h, w = stage["latent_grid"]
        text = f"{stage['name']}: {stage['model']}, {stage['parameters']:,} parameters"
        if "frozen_parameters" in stage:
            text += f" ({stage['frozen_parameters']:,} frozen)"
        text += (
            f", {stage['tokens_per_image']} tokens on {h}x{w} of {stage['num_codes']:,} codes,"
            f" {stage['steps']:,} steps of {stage['batch_size']:,} images,"
            f" {stage['optimizer']} {stage['learning_rate']:g}"
        )
        if "discriminator" in stage:
            text += f", {stage['discriminator']} from step {stage['discriminator_start']:,}"
        if "use_from" in stage:
            text += f", taken from {stage['use_from']}"
        if stage["name"] not in described["train"] and "use_from" not in stage:
            text += ", not to be trained now"
        if "note" in stage:
            text += f" ({stage['note']})"
        lines.append(text)
    return "\n".join(lines)


def known_condition(config: ConfigDict) -> tuple[Condition, str | None]:
    """The condition of a config as far as it can be known before a run, and what is to be said."""
    if config.condition.name == "none":
        return NoCondition(), None
    try:
        source = build_source(config.data.source, "train", config.data.resolution, prepare=False)
    except InputError:
        return NoCondition(), "without its condition: the data set is not there"
    return build_condition(config, source), None


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
