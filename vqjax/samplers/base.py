"""The contract of a sampler, and the settings that samplers of codes share."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from vqjax.samplers.guidance import Schedule
from vqjax.settings import Range, check_settings, setting
from vqjax.tokens import Tokens


class Sampler(NamedTuple):
    """A way to draw tokens from a prior.

    Attributes:
        settings: the dataclass of its settings.
        sample: the function that draws, `sample(prior, variables, rng, condition, known, settings,
            grid) -> Tokens`; one jitted program, which leaves the known tokens as they are. That of
            a prior of any grid takes `corner` too: the cell of the grid at which the frame of a
            training image begins.
    """

    settings: type
    sample: Callable[..., Tokens]


@dataclasses.dataclass(frozen=True)
class TokenSampling:
    """The settings of drawing codes from logits, whatever the order in which they are drawn.

    Guidance other than 1 doubles the batch of each step. The schedule "linear" lets its weight grow
    from 1 while the image is sampled (Muse, Chang et al. 2023, section 2.7).

    Raises:
        FieldError: a value out of its range.
    """

    temperature: float = setting(
        1.0, "of the softmax that codes are drawn from", Range(0, above=True)
    )
    top_k: int = setting(0, "draw among the k most likely codes; 0 for all", Range(0))
    top_p: float = setting(
        1.0, "draw among the likeliest codes of this probability; 1 for all", Range(0, 1, True)
    )
    guidance: float = setting(1.0, "classifier-free guidance; 1 for none", Range(0))
    guidance_schedule: Schedule = setting("constant", "how guidance gets to its weight")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_settings(self)
