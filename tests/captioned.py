"""A source of captions without images."""

import dataclasses


@dataclasses.dataclass
class Captioned:
    """Image i has the i-th captions, and is called image i."""

    captions: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...] = ("all",)

    def captions_of(self, index):
        return self.captions[index]

    def name_of(self, index):
        return f"image {index}"

    def __len__(self):
        return len(self.captions)
