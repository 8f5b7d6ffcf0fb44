"""The contract of a discriminator: a Linen module that tells real images from reconstructions."""

from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float, Key

from vqjax.settings import check_settings


class Discriminator(nn.Module):
    """Logits of images, high for real ones.

    The collection "batch_stats" (running averages, power iterations of spectral norm) is its state.
    """

    # Entries of "params" that are never trained.
    frozen: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            """Linen's own, which has no type for the result of a method of ours."""

    def __post_init__(self) -> None:
        """Checks the fields, each by itself.

        Raises:
            FieldError: a value out of its range.
        """
        check_settings(self)
        super().__post_init__()

    @nn.nowrap
    def frozen_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        """The values of the frozen parameters, of which `init` has only the shapes right.

        Args:
            key: the same one gives the same values.

        Raises:
            InputError: they cannot be found.
        """
        del key
        return {}

    @nn.nowrap
    def check_size(self, height: int, width: int) -> None:
        """Checks the size of the images that are to be looked at, in pixels.

        Raises:
            FieldError: too small; names the field to change.
        """

    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b n"]:
        """Float32 logits of all heads and patches side by side.

        Args:
            images: [-1, 1].
            train: normalise by the statistics of the batch, and update "batch_stats", which has to
                be mutable. The generator's step throws the update away.
        """
        raise NotImplementedError
