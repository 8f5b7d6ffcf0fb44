"""Tokens of a training set, made once: what they depend on, and how they are made."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vqjax.data import DataSettings, Share, Source
from vqjax.data.pipeline import enumerated_views, view_batches
from vqjax.data.token_files import TokensOnDisk
from vqjax.data.token_sets import TokenForm, TokenizedImage, TokensInMemory
from vqjax.errors import InputError
from vqjax.evaluation.protocol import digest
from vqjax.files import is_remote, open_path
from vqjax.parallel import to_host
from vqjax.runs.build import data_settings
from vqjax.runs.stages import tokenizer_of
from vqjax.runs.workdir import differences
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokens_shape
from vqjax.tokens import Tokens

log = logging.getLogger(__name__)

# What a tokenizer's config has that its codes do not depend on, but for rounding.
_COMPUTE = r"tokenizer\.model\.(remat|implementation)"
_MAX_DIFFERENCES = 3


def token_form(tokenizer: Tokenizer, resolution: int, views: int) -> TokenForm:
    """The form of the tokens of an image, by the side of its pictures and how many there are."""
    shape = tokens_shape(tokenizer, resolution)
    per_image = shape.codes.shape[1]
    return TokenForm(views, per_image, tokenizer.num_codes, shape.grid, tokenizer.token_kind)


def made_of(config: ConfigDict, stage: str, source: Source, encoder: Any = None) -> dict[str, Any]:
    """Everything that tokens of a data set depend on, but which views of an image there are.

    Args:
        config: of a run.
        stage: whose tokens they are.
        source: the images.
        encoder: the variables of the tokenizer without its decoder, see `split_decoder`; None
            leaves them out.
    """
    data = data_settings(config)
    augmentation = ("crop", "min_scale", "flip") if data.crop == "random" else ("crop", "flip")
    tokenizer = {"model": json.loads(config[tokenizer_of(config, stage)].model.to_json())}
    if encoder is not None:
        tokenizer["weights"] = digest(jax.tree.map(to_host, encoder))
    return {
        "tokenizer": tokenizer,
        "data": {
            "source": source.fingerprint,
            "classes": digest(list(map(str, source.class_names))),
            "images": len(source),
            "resolution": data.resolution,
            **{name: getattr(data, name) for name in augmentation},
        },
    }


def open_tokens(
    config: ConfigDict, stage: str, source: Source, encoder: Any = None
) -> TokensOnDisk:
    """The tokens that `config.<stage>.data.tokens` names.

    Args:
        config: of a run.
        stage: a prior.
        source: the images to train on.
        encoder: see `made_of`; None does not look at the weights.

    Raises:
        InputError: they are not there, not whole, or of something else: what differs is listed.
    """
    path = config[stage].data.tokens
    named = f"config.{stage}.data.tokens={path}"
    folder = open_path(path, f"config.{stage}.data.tokens")
    if is_remote(folder):
        raise InputError(f"{named}: tokens are read from a disk: copy the folder to one")
    tokens = TokensOnDisk(Path(folder), named)
    wanted = made_of(config, stage, source, encoder)
    allowed = _COMPUTE if encoder is not None else rf"{_COMPUTE}|tokenizer\.weights"
    differing = differences(tokens.record.made_of, wanted, "", re.compile(allowed))
    if differing:
        more = len(differing) - _MAX_DIFFERENCES
        listed = "; ".join(differing[:_MAX_DIFFERENCES]) + (
            f"; and {more} more" if more > 0 else ""
        )
        raise InputError(
            f"{named}: these are not the tokens of this run: {listed}. Write its own by vqjax"
            f" tokenize, or train on images with config.{stage}.data.tokens="
        )
    return tokens


def tokenized_images(
    batches: Iterable[Mapping[str, Any]],
    encode: Callable[[UInt8[np.ndarray, "b H W 3"]], Tokens],
    form: TokenForm,
) -> Iterator[TokenizedImage]:
    """The tokens of the images of `view_batches`, one by one, the padding of the last batch too."""
    for batch in batches:
        images = batch["image"]
        tokens = encode(images.reshape(-1, *images.shape[2:]))
        arrays = {
            name: np.asarray(getattr(tokens, name)).reshape(-1, form.views, form.per_image)
            for name in form.arrays
        }
        for row, (label, captions) in enumerate(
            zip(batch["label"], batch["captions"], strict=True)
        ):
            image: Any = {name: array[row] for name, array in arrays.items()}
            yield image | {"label": int(label), "captions": captions}


def tokens_in_memory(
    source: Source,
    settings: DataSettings,
    form: TokenForm,
    encode: Callable[[Any], Tokens],
    everywhere: Callable[[Any], Any],
    *,
    batch_size: int,
    share: Share,
) -> TokensInMemory:
    """Tokens of all views of all images of a set, of which every process gets all.

    Args:
        source: the images.
        settings: how they are read; crop and flip leave views that can be enumerated.
        form: of the tokens.
        encode: global arrays of tokens, of this process's images of a batch.
        everywhere: the whole of arrays, of this process's rows of them.
        batch_size: images that are encoded at once, by all processes together.
        share: of this process.

    Raises:
        InputError: a broken image.
    """
    began, count = time.monotonic(), len(source)
    arrays = {
        name: np.empty((count, form.views, form.per_image), form.dtype) for name in form.arrays
    }
    told = {name: np.empty(count, np.int32) for name in ("label", "index")}
    batches = view_batches(
        source,
        settings,
        range(count),
        views=form.views,
        seed=0,
        batch_size=batch_size,
        share=share,
    )
    for number, batch in enumerate(batches):
        rows = slice(number * batch_size, min((number + 1) * batch_size, count))
        size = rows.stop - rows.start
        for view in range(form.views):
            tokens = encode(batch["image"][:, view])
            for name, array in arrays.items():
                array[rows, view] = to_host(getattr(tokens, name))[:size]
        for name, values in everywhere({name: batch[name] for name in told}).items():
            told[name][rows] = values[:size]
    log.info(
        "tokens of %s images, %d of each, made in %.0f s and kept in memory",
        f"{count:,}",
        form.views,
        time.monotonic() - began,
    )
    return TokensInMemory(arrays, told["label"], told["index"], source)


def fits_memory(
    source: Source, settings: DataSettings, form: TokenForm, most_bytes: int, images: int
) -> bool:
    """Whether tokens are to be made once and kept.

    They are where they can, and where it makes less work: where training sees more images than
    there are views of the set. It does not matter at which step training goes on.

    Args:
        source: the images to train on.
        settings: how they are read.
        form: of their tokens.
        most_bytes: that they may take.
        images: that the whole training sees.
    """
    return (
        form.views == enumerated_views(settings)
        and form.bytes_per_image * len(source) <= most_bytes
        and images > form.views * len(source)
    )
