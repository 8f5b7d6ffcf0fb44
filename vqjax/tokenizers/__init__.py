"""Stage 1: from images to tokens and back. `config.<stage>.model.name` picks one.

To add a tokenizer, write its file here and name its class in `TOKENIZERS`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers.base import Tokenizer
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.tokenizers.mqvae import MQVAE
from vqjax.tokenizers.seqgan import SeQGAN
from vqjax.tokenizers.vit_vqgan import ViTVQGAN
from vqjax.tokenizers.vqgan import VQGAN

__all__ = ["TOKENIZERS", "Tokenizer", "build_tokenizer"]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "efficient_vqgan": EfficientVQGAN,
    "mqvae": MQVAE,
    "seqgan": SeQGAN,
    "vit_vqgan": ViTVQGAN,
    "vqgan": VQGAN,
}


def build_tokenizer(part: str, config: Mapping[str, Any] | ConfigDict) -> Tokenizer:
    """The tokenizer of a stage.

    Args:
        part: path of its sub-config, for messages ("tokenizer.model").
        config: the model's "name", its fields, and "quantizer": those of the codebook.

    Raises:
        InputError: unknown name or field, or a value out of its range.
    """
    fields = dict(config)
    quantizer = registry.from_fields(
        f"{part}.quantizer", VectorQuantizer, fields.pop("quantizer", {})
    )
    return registry.build(part, TOKENIZERS, fields, quantizer=quantizer)
