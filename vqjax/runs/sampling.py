"""Settings of drawing images: `config.sampling`, read and checked."""

import dataclasses
from typing import Any

from vqjax.settings import Range, check_settings, setting


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings of drawing images, beside those of the sampler.

    Raises:
        FieldError: a value out of its range.
    """

    num_images: int = setting(64, "images that sample.py draws", Range(1))
    batch_size: int = setting(64, "images that are drawn at a time", Range(1))
    decode_tile: int = setting(
        0, "side in pixels of the tiles that are decoded one by one; 0 for the whole", Range(0)
    )

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`config.sampling`, read and checked.

    Attributes:
        sampler: the settings dataclass of the prior's sampler.
        generation: the rest.
    """

    sampler: Any
    generation: GenerationSettings
