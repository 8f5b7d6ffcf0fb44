"""Tokens of a data set, made once, and the batches of them."""

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Integer

from vqjax.conditions import Condition
from vqjax.data.delivery import WHOLE, Batch, Share
from vqjax.data.pipeline import shuffled_batches
from vqjax.data.sources import Source
from vqjax.settings import Range, check_settings, setting


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """Where the tokens that a prior is trained on come from: `config.<prior>.data`.

    Raises:
        FieldError: a value out of its range.
    """

    tokens: str = setting("", "folder that `vqjax tokenize` wrote; '' makes tokens of the images")
    in_memory: int = setting(
        2**28,
        "most bytes of tokens that are made once, at the start, where crop and flip leave"
        " each image at most two views; 0 makes them in every step",
        Range(0),
    )

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)


class TokenizedImage(TypedDict):
    """What there is of an image; all that a condition needs of an example is there.

    Attributes:
        codes: of each view.
        positions: of the codes, where the tokenizer is sparse.
        label: its class.
        captions: all texts that describe it.
    """

    codes: Integer[np.ndarray, "views n"]
    positions: NotRequired[Integer[np.ndarray, "views n"]]
    label: int
    captions: tuple[str, ...]


@runtime_checkable
class TokenSet(Protocol):
    """Random access to the tokens of one split of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TokenizedImage: ...


def drawn_view(views: int, rng: np.random.Generator) -> int:
    """Which view of an image an epoch takes.

    Of two it is the first where `vqjax.data.images.random_flip` mirrors, and of one nothing is
    drawn, as nothing is for images without augmentation.
    """
    return int(rng.random() * views) if views > 1 else 0


def token_batches(
    tokens: TokenSet,
    condition: Condition,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    share: Share = WHOLE,
) -> Generator[Batch, None, None]:
    """Endless training batches of tokens that are there; otherwise as `train_batches`.

    The images of a batch are those of `train_batches`. Of each, the view is drawn by its place in
    that order: where the views are all that crop and flip can make, it is the one that
    `train_batches` draws there.

    Args:
        tokens: of the images.
        condition: what is told of each image besides.
        batch_size: images of all processes together.
        seed: of the shuffle and the views, in [0, 2**32).
        start_step: step of the first batch.
        share: of this process.

    Yields:
        {"codes": int32 [b, n], "condition": int32 [b, c]} with b the local batch, and "positions",
        int32 [b, n], of a sparse tokenizer's.

    Raises:
        InputError: arguments out of range.
    """
    # There is too little to do for processes of their own.
    return shuffled_batches(
        len(tokens),
        _Read(tokens),
        _Draw(condition),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        share=share,
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    tokens: TokenSet

    def __call__(self, index: int) -> TokenizedImage:
        return self.tokens[index]


@dataclasses.dataclass(frozen=True)
class _Draw:
    condition: Condition

    def __call__(self, element: Any, rng: np.random.Generator) -> dict[str, Any]:
        view = drawn_view(len(element["codes"]), rng)
        arrays = {
            name: element[name][view].astype(np.int32)
            for name in ("codes", "positions")
            if name in element
        }
        return {**arrays, "condition": self.condition.encode(element, rng), "broken": []}


@dataclasses.dataclass(frozen=True)
class TokenForm:
    """The form of the tokens of an image.

    Attributes:
        views: pictures of each image.
        per_image: n, tokens of a picture.
        num_codes: size of the codebook.
        grid: the latent grid (h, w).
        token_kind: of the tokenizer; a sparse one has positions.
    """

    views: int
    per_image: int
    num_codes: int
    grid: tuple[int, int]
    token_kind: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of an image."""
        return ("codes",) if self.token_kind == "dense" else ("codes", "positions")

    @property
    def dtype(self) -> np.dtype:
        """The smallest type of two that holds every code, and every position with h * w."""
        largest = max(self.num_codes - 1, self.grid[0] * self.grid[1])
        return np.dtype("<u2" if largest < 2**16 else "<i4")

    @property
    def bytes_per_image(self) -> int:
        """Of all arrays of an image."""
        return len(self.arrays) * self.views * self.per_image * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class TokensInMemory:
    """Tokens of a data set that are in memory.

    Attributes:
        arrays: by name, of all images.
        labels: of the images.
        indices: of the images that were read, others than asked for where some are broken.
        source: that has their captions.
    """

    arrays: Mapping[str, Integer[np.ndarray, "images views n"]]
    labels: Integer[np.ndarray, " images"]
    indices: Integer[np.ndarray, " images"]
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> TokenizedImage:
        image: Any = {name: array[index] for name, array in self.arrays.items()}
        captions = self.source.captions_of(int(self.indices[index]))
        return image | {"label": int(self.labels[index]), "captions": captions}
