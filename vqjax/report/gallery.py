"""Pictures from a run's models: reconstructions, samples."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vqjax.generation.codec import decode, encode
from vqjax.generation.importance import importance, is_adaptive
from vqjax.generation.run import Images, Run
from vqjax.losses.pixelwise import psnr
from vqjax.parallel import batch_sharding, to_host
from vqjax.pixels import to_float
from vqjax.report.importance import heat, masked
from vqjax.samplers.rejection import condition_groups

# Larger images are shrunk to this side: a page of photographs would be a burden to a phone.
MAX_SIDE = 256
# Conditions whose samples are shown, at most.
_CONDITIONS = 12


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
    """An image, its reconstruction, and a caption.

    Attributes:
        image: held out.
        reconstruction: of it.
        caption: below them.
        importance: where an adaptive mask decides what has a code, the scores of the image's
            regions, and those that have one.
    """

    image: Picture
    reconstruction: Picture
    caption: str
    importance: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images that were drawn.

    Attributes:
        groups: pictures by condition, in words; by "" where there is none.
        images: of all groups, in order.
        names: condition of each.
        settings: how they were drawn, in words.
        classes: of the run, more than `groups` where not all are shown; 0 where none are told.
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
    run: Run, class_names: Sequence[str], images: Images, labels: Int[np.ndarray, " n"]
) -> list[Pair]:
    """Images beside their reconstructions.

    Args:
        run: whose tokenizer it is.
        class_names: of its data.
        images: held-out ones; as many as its devices divide.
        labels: their classes.
    """
    tokenizer, variables = run.tokenizer, run.tokenizer_variables
    tokens = encode(tokenizer, variables, jax.device_put(images, batch_sharding(run.mesh)))
    tile = run.sampling().generation.decode_tile if run.prior_stage else 0
    rebuilt = to_host(decode(tokenizer, variables, tokens, tile))
    errors = to_host(psnr(to_float(images), to_float(rebuilt)))
    shown: list[tuple[Picture, ...]] = [()] * len(images)
    if is_adaptive(run):
        found = importance(run, images)
        scores, kept = heat(images, found.scores), masked(images, found.kept)
        shown = [
            (picture(score, "its regions by importance"), picture(part, "those that have a code"))
            for score, part in zip(scores, kept, strict=True)
        ]
    pairs = []
    for image, copy, label, error, between in zip(
        images, rebuilt, labels, errors, shown, strict=True
    ):
        name = class_name(class_names, int(label))
        of = f" of class {name}" if name else ""
        pairs.append(
            Pair(
                picture(image, f"held-out image{of}"),
                picture(copy, f"its reconstruction, {error:.1f} dB"),
                f"{error:.1f} dB",
                between,
            )
        )
    return pairs


def samples(run: Run, count: int, seed: int) -> Samples:
    """Images drawn as `config.sampling` says: about `count` in all, as many of each condition.

    Raises:
        InputError: there is no trained prior, or a setting is out of its range.
    """
    sampling = run.sampling()
    classes = run.condition.classes
    every, _ = condition_groups(run.condition.in_turn(len(classes) or _CONDITIONS))
    # Evenly spaced where there are many.
    number = min(len(every), _CONDITIONS)
    shown = np.unique(np.linspace(0, len(every) - 1, number).round().astype(int))
    conditions = np.repeat(every[shown], -(-count // len(shown)), axis=0)
    images = np.concatenate(list(run.images(conditions, sampling, seed=seed)))
    names = [run.condition.describe(ids) for ids in conditions]
    groups: dict[str, list[Picture]] = {}
    for image, name in zip(images, names, strict=True):
        of = f" of class {name}" if classes else f": {name}" if name else ""
        alt = f"sample{of}"
        groups.setdefault(name, []).append(picture(image, alt))
    settings = dataclasses.asdict(sampling.sampler)
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return Samples(groups, images, names, f"{told}, seed {seed}", len(classes))
