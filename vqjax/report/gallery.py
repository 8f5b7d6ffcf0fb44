"""Pictures from a run's models: reconstructions, samples."""

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vqjax.generation import editing
from vqjax.generation.run import Generator, Images
from vqjax.losses.pixelwise import psnr
from vqjax.parallel import batch_sharding, to_host
from vqjax.pixels import to_float
from vqjax.training.prior_stage import sampling_spec

# Larger images are shrunk to this side: a page of photographs would be a burden to a phone.
MAX_SIDE = 256
# Classes whose samples are shown, at most.
_CLASSES = 12


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        uri: of its data.
        side: of the image in pixels.
        alt: its text alternative.
    """

    uri: str
    side: int
    alt: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image, its reconstruction, and a caption."""

    image: Picture
    reconstruction: Picture
    caption: str


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images that were drawn.

    Attributes:
        groups: pictures by class; by "" where there are no classes.
        images: of all groups, in order.
        names: class of each, "" without classes.
        settings: how they were drawn, in words.
        classes: of the run; more than `groups` where not all are shown.
    """

    groups: dict[str, list[Picture]]
    images: UInt8[np.ndarray, "n H W 3"]
    names: list[str]
    settings: str
    classes: int


def picture(image: UInt8[np.ndarray, "h w 3"], alt: str) -> Picture:
    """An image as it goes into the page."""
    pixels = Image.fromarray(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    pixels.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", max(pixels.size), alt)


def class_name(names: Sequence[str], label: int) -> str:
    """Name of a class; its number where there is none, nothing where there is but one class."""
    if len(names) == 1:
        return ""
    return names[label] if label < len(names) else f"class {label}"


def reconstructions(
    generator: Generator, images: Images, labels: Int[np.ndarray, " n"]
) -> list[Pair]:
    """Images beside their reconstructions.

    Args:
        generator: of the run.
        images: held-out ones; as many as its devices divide.
        labels: their classes.
    """
    tokenizer, variables = generator.tokenizer, generator.tokenizer_variables
    encode: Callable[..., Any] = jax.jit(tokenizer.apply, static_argnames=("method",))
    pixels = to_float(jax.device_put(images, batch_sharding(generator.mesh)))
    tokens = encode(variables, pixels, method="encode")
    tile = generator.config.sampling.get("decode_tile", 0)
    rebuilt = to_host(editing.decode(tokenizer, variables, tokens, tile))
    errors = to_host(psnr(to_float(images), to_float(rebuilt)))
    pairs = []
    for image, copy, label, error in zip(images, rebuilt, labels, errors, strict=True):
        name = class_name(generator.class_names, int(label))
        of = f" of class {name}" if name else ""
        pairs.append(
            Pair(
                picture(image, f"held-out image{of}"),
                picture(copy, f"its reconstruction, {error:.1f} dB"),
                f"{error:.1f} dB",
            )
        )
    return pairs


def samples(generator: Generator, count: int, seed: int) -> Samples:
    """Images drawn as `config.sampling` says: about `count` in all, as many of each class.

    Raises:
        InputError: there is no trained prior, or a setting is out of its range.
    """
    prior, settings = generator.prior, generator.config.sampling
    classes = prior.num_classes
    # Evenly spaced where there are many.
    shown = np.unique(np.linspace(0, max(classes - 1, 0), min(max(classes, 1), _CLASSES)).round())
    labels = np.repeat(shown, -(-count // len(shown))).astype(np.int32)
    batches = generator.generate(
        labels,
        sampling_spec(prior, prior.grid, settings),
        seed=seed,
        batch_size=min(settings.batch_size, len(labels)),
        tile=settings.get("decode_tile", 0),
    )
    images = np.concatenate(list(batches))
    names = [(class_name(generator.class_names, int(label)) if classes else "") for label in labels]
    groups: dict[str, list[Picture]] = {}
    for image, name in zip(images, names, strict=True):
        alt = f"sample of class {name}" if name else "sample"
        groups.setdefault(name, []).append(picture(image, alt))
    told = [f"{settings.steps} steps a block", f"temperature {settings.temperature:g}"]
    told += [f"top-k {settings.top_k}"] if settings.top_k else []
    told += [f"top-p {settings.top_p:g}"] if settings.top_p < 1 else []
    told += [f"guidance {settings.guidance:g}"] if settings.guidance != 1 else []
    return Samples(groups, images, names, f"{', '.join(told)}, seed {seed}", classes)
