"""Stage 2: distributions over tokens. `config.prior.model.name` picks one."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vqjax import registry
from vqjax.errors import InputError
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.tokenizers import Tokenizer

PRIORS = {"multigrained": MultiGrainedPrior}
Prior = MultiGrainedPrior


def build_prior(
    config: Mapping[str, Any] | ConfigDict,
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    num_classes: int,
) -> Prior:
    """The prior of `config.prior.model` over the tokens of a tokenizer.

    Args:
        config: the model's "name", its fields, and "conditional": whether the class label is a
            condition.
        tokenizer: whose tokens are modelled: gives the size of the codebook and the latent grid.
        image_size: (height, width) of the training images in pixels.
        num_classes: of the data set.

    Raises:
        InputError: unknown name or field, a tokenizer that the prior cannot take, an image that the
            tokenizer cannot.
    """
    fields = dict(config)
    conditional = fields.pop("conditional", False)
    prior = registry.build(
        "prior.model",
        PRIORS,
        fields,
        num_codes=tokenizer.num_codes,
        grid=tokenizer.grid(*image_size),
        num_classes=num_classes if conditional else 0,
    )
    if prior.token_kind != tokenizer.token_kind:
        raise InputError(
            f"config.prior.model.name={config['name']!r} takes {prior.token_kind} tokens, but the"
            f" tokenizer {type(tokenizer).__name__} makes {tokenizer.token_kind} ones:"
            " choose a pair that agrees"
        )
    return prior
