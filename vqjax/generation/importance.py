"""The regions of given images that a tokenizer with an adaptive mask holds to be important.

Source: paper 002, section 3.2 and figure 4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from vqjax.errors import InputError
from vqjax.generation.run import Images, Run
from vqjax.losses.pixelwise import psnr
from vqjax.pixels import to_float
from vqjax.tokenizers.mqvae import MQVAE


@dataclasses.dataclass(frozen=True, eq=False)
class Importance:
    """What a tokenizer keeps of images, and what it makes of it.

    Attributes:
        scores: of the cells of the latent map, (0, 1).
        kept: cells that have a code.
        reconstructions: from these codes.
        psnr: of the reconstructions in dB, mean over the images.
    """

    scores: Float[np.ndarray, "n h w"]
    kept: Bool[np.ndarray, "n h w"]
    reconstructions: Images
    psnr: float


def is_adaptive(run: Run) -> bool:
    """True if the tokenizer of a run scores regions."""
    return isinstance(run.tokenizer, MQVAE) and run.tokenizer.mask == "adaptive"


def check_adaptive(run: Run) -> None:
    """Checks that the tokenizer of a run scores regions.

    Raises:
        InputError: it does not.
    """
    if not is_adaptive(run):
        raise InputError(
            f"{run.workdir} has a tokenizer without an adaptive mask, which alone scores the"
            " regions of an image: name runs of an mqvae with mask=adaptive"
        )


def importance(run: Run, images: Images) -> Importance:
    """What a run's tokenizer holds to be important in images.

    Args:
        run: see `check_adaptive`.
        images: any that it takes.

    Raises:
        InputError: no trained tokenizer, or images that it does not take.
    """
    tokens = run.encode(images)
    scores = np.asarray(_scores(run.tokenizer, run.tokenizer_variables, images))
    codes = np.asarray(tokens.scattered(missing=-1)).reshape(scores.shape)
    reconstructions = run.decode(tokens)
    quality = psnr(to_float(images), to_float(reconstructions))
    return Importance(scores, codes >= 0, reconstructions, float(np.mean(quality)))


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _scores(
    tokenizer: MQVAE, variables: Mapping[str, Any], images: UInt8[Array, "n H W 3"]
) -> Float[Array, "n h w"]:
    return tokenizer.apply(variables, to_float(images), method="scores")
