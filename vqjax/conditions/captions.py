"""A caption of an image as its condition: tokens of a byte-level BPE.

Source: paper 002, section 3.3, puts text in front of the codes and leaves its tokens open. The BPE
is GPT-2's (Radford et al. 2019, section 2.2), trained on the captions at hand; that texts are put
in lower case, with single spaces, is CLIP's (Radford et al. 2021, section 2.4).
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vqjax.conditions.base import Condition, DescribedSource, Ids, padding_id
from vqjax.errors import FieldError, InputError
from vqjax.settings import Range, check_settings, setting

TooLong = Literal["refuse", "cut"]
# Defaults of the settings, here because `of` has them too.
LENGTH, VOCABULARY = 64, 16_384
# Captions that are kept to be shown, at most.
_SHOWN = 24
# Captions that are tokenized at once.
_BATCH = 8_192
# Characters of a caption in a message, at most.
_IN_MESSAGE = 60


@dataclasses.dataclass(frozen=True)
class CaptionCondition(Condition):
    """A caption of an image, as tokens of a BPE of the training set's captions.

    The BPE is of bytes, so that every text has its tokens: there are no unknown characters.

    Attributes:
        length: tokens that a caption may have.
        vocabulary: see `num_ids` for how many there are.
        too_long: for captions of a data set.
        merges: pairs of tokens that become one, "left right", in the order of their training.
        shown: captions of the training set.

    Raises:
        FieldError: a value out of its range.
    """

    length: int = setting(LENGTH, "tokens that a caption may have", Range(1))
    vocabulary: int = setting(
        VOCABULARY, "tokens that there are, at most: fewer where captions are few", Range(256)
    )
    too_long: TooLong = setting("refuse", "a caption of the data with more tokens: stop, or cut it")
    merges: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    name: ClassVar[str] = "caption"
    asked_by: ClassVar[Literal["label", "caption"]] = "caption"

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_settings(self)

    @classmethod
    def of(
        cls,
        source: DescribedSource,
        *,
        length: int = LENGTH,
        vocabulary: int = VOCABULARY,
        too_long: TooLong = "refuse",
    ) -> "CaptionCondition":
        """The condition of a training set, all of whose captions are read.

        Raises:
            FieldError: a setting out of its range, or as `check`.
        """
        untrained = cls(length, vocabulary, too_long)
        captions = _captions(source)
        places = np.linspace(0, len(captions) - 1, _SHOWN).round().astype(int)
        shown = dict.fromkeys(captions[place][0] for place in places)
        merges = _trained_merges(itertools.chain.from_iterable(captions), vocabulary)
        made = dataclasses.replace(untrained, merges=merges, shown=tuple(shown))
        made._check_lengths(source, captions)
        return made

    def check(self, source: DescribedSource) -> None:
        """Checks that every image of a set has a caption, and captions that fit.

        Raises:
            FieldError: one has none, or an empty one, or, where these are not to be cut, one of
                more tokens than fit: the longest is named.
        """
        self._check_lengths(source, _captions(source))

    def _check_lengths(self, source: DescribedSource, captions: list[tuple[str, ...]]) -> None:
        """`check` of captions that are there."""
        if self.too_long == "cut":
            return
        texts = ((text, index) for index, own in enumerate(captions) for text in own)
        longest, caption, image = 0, "", 0
        while batch := list(itertools.islice(texts, _BATCH)):
            tokens = self._bpe.encode_batch_fast([text for text, _ in batch])
            for (text, index), encoded in zip(batch, tokens, strict=True):
                if len(encoded) > longest:
                    longest, caption, image = len(encoded), text, index
        if longest > self.length:
            raise FieldError(
                f"length={self.length}: the longest caption has {longest} tokens,"
                f" {_shortened(caption)!r} of {source.name_of(image)}: set length={longest}, or"
                " too_long='cut' to leave out what does not fit"
            )

    @property
    def num_ids(self) -> int:
        """Size of the vocabulary: a token for each of 256 bytes, and those of the merges."""
        return len(self._ids)

    @property
    def id_names(self) -> tuple[str, ...]:
        """The tokens."""
        return tuple(self._ids)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """By token its id."""
        return _ids_of(self.merges)

    @cached_property
    def _bpe(self) -> Tokenizer:
        """What makes tokens of texts, and texts of tokens."""
        pairs: list[Any] = [tuple(merge.split(" ")) for merge in self.merges]
        bpe = Tokenizer(models.BPE(vocab=self._ids, merges=pairs))
        bpe.pre_tokenizer = _words()
        bpe.decoder = decoders.ByteLevel()
        return bpe

    def encode(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> Ids:
        """The tokens of one of the captions of an example: the first, or with `rng` any.

        Raises:
            InputError: it has none, or an empty one, or one of too many tokens.
        """
        captions = example["captions"]
        if not captions:
            named = example.get("name", "an image")
            raise InputError(f"{named} has no caption, which this run's prior is told of each")
        text = _normalised(captions[int(rng.integers(len(captions))) if rng else 0])
        return self._padded(text, cut=self.too_long == "cut")

    def parse(self, text: str) -> Ids:
        """The tokens of a caption.

        Raises:
            InputError: it is empty, or has too many.
        """
        return self._padded(_normalised(text), cut=False)

    def _padded(self, text: str, cut: bool) -> Ids:
        if not _is_text(text):
            raise InputError(
                f"{_shortened(text)!a}: this caption has bytes that are no text: write it in UTF-8"
            )
        if not text:
            raise InputError("'': an empty caption says nothing: write what is to be seen")
        tokens = self._bpe.encode(text).ids
        if len(tokens) > self.length and not cut:
            raise InputError(
                f"{_shortened(text)!r}: this caption has {len(tokens)} tokens, and {self.length}"
                " fit into this run's condition: leave words out"
            )
        ids = np.full(self.length, padding_id(self.num_ids), np.int32)
        ids[: len(tokens)] = tokens[: self.length]
        return ids

    def describe(self, ids: Ids) -> str:
        """The caption, in lower case and with single spaces."""
        return self._bpe.decode([int(i) for i in ids if i < self.num_ids]).strip()

    def in_turn(self, count: int) -> Int[np.ndarray, "{count} c"]:
        """Some captions of the training set in turn."""
        rows = np.stack([self._padded(text, cut=True) for text in self.shown])
        return rows[np.arange(count) % len(rows)]


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _is_text(text: str) -> bool:
    """False for halves of characters, of which there are no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortened(text: str) -> str:
    return text if len(text) <= _IN_MESSAGE else f"{text[: _IN_MESSAGE - 3]}..."


def _captions(source: DescribedSource) -> list[tuple[str, ...]]:
    """The captions of every image of a set, none of them empty.

    Raises:
        FieldError: an image without one, or with an empty one.
    """
    found = []
    for index in range(len(source)):
        captions = tuple(_normalised(text) for text in source.captions_of(index))
        if not captions or not all(captions) or not all(map(_is_text, captions)):
            problem = "an empty caption" if captions else "no caption"
            if all(captions) and captions:
                problem = "a caption with bytes that are no text"
            raise FieldError(
                f"name='caption': {source.name_of(index)} has {problem}: give it one, or leave the"
                " image out"
            )
        found.append(captions)
    return found


def _words() -> pre_tokenizers.ByteLevel:
    """Words of a text as characters that stand for its bytes; the first has a space before it."""
    return pre_tokenizers.ByteLevel(add_prefix_space=True)


def _ids_of(merges: Sequence[str]) -> dict[str, int]:
    """By token its id: bytes, in the order of the characters that stand for them, then merges."""
    ids = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for merge in merges:
        # Two pairs may become the same token.
        ids.setdefault(merge.replace(" ", ""), len(ids))
    return ids


def _trained_merges(texts: Iterable[str], vocabulary: int) -> tuple[str, ...]:
    """The merges of a BPE of texts, which are the same for the same texts in any order."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = _words()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        # A pair that is there once would be one token of one caption.
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    return tuple(" ".join(pair) for pair in json.loads(bpe.to_str())["model"]["merges"])
