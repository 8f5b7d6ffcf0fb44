"""Stage 1: from images to tokens and back. `config.tokenizer.model.name` picks one."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.quantizers import VectorQuantizer
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.tokenizers.vqgan import VQGAN

Tokenizer = EfficientVQGAN | VQGAN
TOKENIZERS: dict[str, type[Tokenizer]] = {"efficient_vqgan": EfficientVQGAN, "vqgan": VQGAN}


def build_tokenizer(config: Mapping[str, Any] | ConfigDict) -> Tokenizer:
    """The tokenizer of `config.tokenizer.model`.

    Raises:
        InputError: unknown name or field.
    """
    fields = dict(config)
    quantizer = dict(fields.pop("quantizer", {}))
    registry.check_fields("tokenizer.model.quantizer", VectorQuantizer, quantizer)
    return registry.build(
        "tokenizer.model", TOKENIZERS, fields, quantizer=VectorQuantizer(**quantizer)
    )
