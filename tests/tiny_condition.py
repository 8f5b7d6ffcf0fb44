"""A made-up condition that is a text: the first letters of an image's caption."""

import dataclasses
from typing import ClassVar

import numpy as np

from vqjax.conditions import Condition, padding_id
from vqjax.errors import FieldError


@dataclasses.dataclass(frozen=True)
class LettersCondition(Condition):
    """Letters as ids, as many as `letters`; padding where there are fewer."""

    letters: int
    alphabet: str

    name: ClassVar[str] = "letters"

    @classmethod
    def of(cls, source, *, letters=3, alphabet=""):
        if letters < 1:
            raise FieldError(f"letters={letters}: at least 1 is needed")
        captions = (caption for i in range(len(source)) for caption in source.captions_of(i))
        return cls(letters, alphabet or "".join(sorted(set("".join(captions)))))

    @property
    def length(self):
        return self.letters

    @property
    def num_ids(self):
        return len(self.alphabet)

    def encode(self, example, rng=None):
        captions = example["captions"]
        return self.parse(captions[rng.integers(len(captions)) if rng else 0])

    def parse(self, text):
        ids = [self.alphabet.index(letter) for letter in text[: self.letters]]
        ids += [padding_id(self.num_ids)] * (self.letters - len(ids))
        return np.array(ids, np.int32)

    def describe(self, ids):
        return "".join(self.alphabet[i] for i in ids if i < self.num_ids)

    def in_turn(self, count):
        return np.stack([self.parse(self.alphabet[i % self.num_ids]) for i in range(count)])
