"""What an autoregressive prior predicts of given images: of each code, from the true ones before.

Nothing is drawn, so that the priors of several tokenizers can be compared on the same images.

Source: paper 001, section 3.2 and figure 4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqjax.errors import InputError
from vqjax.generation.run import Conditions, Images, Run
from vqjax.losses.cross_entropy import cross_entropy
from vqjax.losses.pixelwise import psnr
from vqjax.pixels import to_float
from vqjax.priors.autoregressive import AutoregressivePrior
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Images as a tokenizer rebuilds them, and as its prior predicts them.

    Attributes:
        reconstructions: of the images' own codes.
        predictions: of the likeliest code of every cell.
        psnr: of the reconstructions in dB, mean over the images.
        nats_per_token: cross-entropy of the images' own codes, mean over all of them.
        accuracy: fraction of the codes that are the likeliest, [0, 1].
    """

    reconstructions: Images
    predictions: Images
    psnr: float
    nats_per_token: float
    accuracy: float


def check_autoregressive(run: Run) -> None:
    """Checks that the prior of a run predicts each code from those before it.

    Raises:
        InputError: it does not, or the run has none; or no prior of its tokens could.
    """
    run.tokenizer.check_dense("predicting the code of every cell")
    if not isinstance(run.prior, AutoregressivePrior):
        name = run.config[run.prior_stage].model.name
        raise InputError(
            f"{run.workdir} has the prior {name!r}, but an autoregressive one is needed, which"
            " predicts each code from the true ones before it: train one on the same tokenizer with"
            f" --config.{run.prior_stage}.model.name=autoregressive"
        )


def predict(run: Run, images: Images, conditions: Conditions) -> Predictions:
    """What a run's prior makes of images whose codes it is given.

    Args:
        run: with an autoregressive prior, see `check_autoregressive`.
        images: held-out ones, of the size of the training images.
        conditions: what the prior is told of each.

    Raises:
        InputError: no trained tokenizer or prior, or images that the tokenizer does not take.
    """
    tokens = run.encode(images)
    found = predict_codes(run.prior, run.prior_variables, tokens, jnp.asarray(conditions))
    likeliest, nats = map(np.asarray, found)
    h, w = tokens.grid
    predicted = Tokens.dense(jnp.asarray(likeliest.reshape(-1, h, w)))
    reconstructions = run.decode(tokens)
    quality = psnr(to_float(images), to_float(reconstructions))
    hits = likeliest == np.asarray(tokens.code_map).reshape(likeliest.shape)
    return Predictions(
        reconstructions,
        run.decode(predicted),
        psnr=float(np.mean(quality)),
        nats_per_token=float(np.mean(nats)),
        accuracy=float(np.mean(hits)),
    )


@functools.partial(jax.jit, static_argnames=("prior",))
def predict_codes(
    prior: AutoregressivePrior,
    variables: Mapping[str, Any],
    tokens: Tokens,
    condition: Int[Array, "b c"],
) -> tuple[Int[Array, "b n"], Float[Array, "b n"]]:
    """The likeliest code of each cell, and the nats of its own, given the true ones before it.

    Args:
        prior: the model.
        variables: its variables.
        tokens: dense ones, of the prior's grid.
        condition: see `vqjax.priors.condition`.
    """
    codes = tokens.code_map.reshape(tokens.codes.shape)
    logits = prior.apply(variables, codes, condition)
    return jnp.argmax(logits, axis=-1).astype(codes.dtype), cross_entropy(logits, codes)
