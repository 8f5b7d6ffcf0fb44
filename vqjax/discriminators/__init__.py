"""Discriminators: `config.<stage>.discriminator.model.name` picks one.

To add one, write its file here and name its class in `DISCRIMINATORS`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.discriminators.base import Discriminator
from vqjax.discriminators.patchgan import PatchGAN
from vqjax.discriminators.projected import ProjectedDiscriminator
from vqjax.discriminators.stylegan2 import StyleGAN2Discriminator

__all__ = ["DISCRIMINATORS", "Discriminator", "build_discriminator"]

DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "patchgan": PatchGAN,
    "projected": ProjectedDiscriminator,
    "stylegan2": StyleGAN2Discriminator,
}


def build_discriminator(part: str, config: Mapping[str, Any] | ConfigDict) -> Discriminator:
    """The discriminator of a stage's adversary.

    Args:
        part: path of its sub-config, for messages ("tokenizer.discriminator.model").
        config: the model's "name" and its fields.

    Raises:
        InputError: unknown name or field, or a value out of its range.
    """
    return registry.build(part, DISCRIMINATORS, config)
