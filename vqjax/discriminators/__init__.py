"""Discriminators: `config.tokenizer.discriminator.model.name` picks one.

A discriminator is a Linen module:

- `__call__(images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b n"]` gives float32
  logits, high for real images in [-1, 1]; all its heads and patches side by side.
- With `train` it normalises by the statistics of the batch, and updates the collection
  "batch_stats" (running averages, power iterations of spectral norm), which has to be mutable:
  `mutable=["batch_stats"]`. The generator's step throws the update away.
- `frozen` names the entries of "params" that are never trained; `frozen_params(key)` gives their
  values (`init` only has their shapes right). The same key gives the same values.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.discriminators.patchgan import PatchGAN
from vqjax.discriminators.projected import ProjectedDiscriminator

Discriminator = PatchGAN | ProjectedDiscriminator
DISCRIMINATORS: Mapping[str, type[Discriminator]] = {
    "patchgan": PatchGAN,
    "projected": ProjectedDiscriminator,
}


def build_discriminator(part: str, config: Mapping[str, Any] | ConfigDict) -> Discriminator:
    """The discriminator of `config.tokenizer.discriminator.model`.

    Raises:
        InputError: unknown name or field.
    """
    return registry.build(part, DISCRIMINATORS, config)
