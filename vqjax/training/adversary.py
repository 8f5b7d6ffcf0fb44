"""The adversary of a tokenizer: its settings, its discriminator, and how that looks at images.

Source: paper 000, section 3.1, Eq. 1; VQGAN (Esser et al. 2021), section 3.1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.discriminators import build_discriminator
from vqjax.discriminators.augmentation import Augmentation, diff_augment
from vqjax.errors import InputError
from vqjax.losses.adversarial import Kind, r1_penalty
from vqjax.settings import Range, check_settings, setting
from vqjax.training.optimizers import make_optimizer
from vqjax.training.stage import new_network
from vqjax.training.state import Network


@dataclasses.dataclass(frozen=True)
class AdversarialSettings:
    """Settings of the adversary: `<stage>.discriminator` without its model and optimizer.

    Before the first step with an adversary it costs no time; from there its weight grows, while
    the discriminator learns already.

    Raises:
        FieldError: a value out of its range.
    """

    loss: Kind = setting("hinge", "of both networks")
    weight: float = setting(0.8, "of the adversarial loss, besides the adaptive weight", Range(0))
    adaptive: bool = setting(
        True, "scale it to the reconstruction's gradient at the tokenizer's last layer"
    )
    max_weight: float = setting(10.0, "clamp of the adaptive weight", Range(0, above=True))
    start: int = setting(0, "first step with an adversary", Range(0))
    ramp: int = setting(0, "steps over which the weight then grows from 0", Range(0))
    r1_gamma: float = setting(
        0.0, "weight, twice, of R1, the penalty on gradients at real images; 0 for none", Range(0)
    )
    r1_every: int = setting(
        16, "steps from one R1 to the next, which counts for all of them", Range(1)
    )
    augment: tuple[Augmentation, ...] = setting(
        (), "what is done to real and fake images, one after the other (DiffAugment)"
    )

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)

    def weight_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The weight of the adversarial loss at a step from `start` on."""
        reached = jnp.clip((step + 1 - self.start) / (self.ramp + 1), 0.0, 1.0)
        return self.weight * reached

    @property
    def r1_weight(self) -> float:
        """The weight of R1 in the steps that have it (StyleGAN2, appendix B: lazy)."""
        return self.r1_gamma / 2 * self.r1_every

    def has_r1(self, step: int) -> bool:
        """True if the discriminator's loss has R1 at a step from `start` on."""
        return self.r1_gamma > 0 and (step - self.start) % self.r1_every == 0


def adversarial_settings(part: str, config: ConfigDict) -> AdversarialSettings:
    """The settings of the sub-config at this path, which are checked without an adversary too.

    Raises:
        InputError: unknown field, or a setting out of its range.
    """
    fields = {key: value for key, value in config.items() if key not in ("model", "optimizer")}
    # On the command line, --config.tokenizer.discriminator.augment=color,translation.
    names = tuple(name for item in fields.get("augment", ()) for name in item.split(","))
    return registry.from_fields(part, AdversarialSettings, {**fields, "augment": names})


class Adversary:
    """A discriminator with its settings and its optimizer."""

    def __init__(
        self, part: str, config: ConfigDict, steps: int, image_shape: tuple[int, int, int]
    ):
        """Takes the path of its sub-config, that, the stage's steps and an image's (H, W, 3).

        Raises:
            InputError: unknown name or field, a setting out of its range, or images too small.
        """
        self.settings = adversarial_settings(part, config)
        if self.settings.start >= steps:
            raise InputError(
                f"config.{part}.start={self.settings.start}: a step before the last of {steps} is"
                " needed"
            )
        self.model = build_discriminator(f"{part}.model", config.model)
        with registry.named_in(f"{part}.model"):
            self.model.check_size(*image_shape[:2])
        # Its first update is that of step `start`.
        self.optimizer, _ = make_optimizer(
            f"{part}.optimizer", config.optimizer, steps - self.settings.start
        )
        self.image_shape = image_shape

    def init(self, key: Key[Array, ""]) -> Network:
        """The discriminator before its first step, without its frozen parameters."""
        variables = dict(self._init_variables(key))
        frozen = self.model.frozen
        variables["params"] = {k: v for k, v in variables["params"].items() if k not in frozen}
        return new_network(variables, self.optimizer, average=False)

    def frozen_shapes(self) -> Any:
        """Shapes of `load_frozen`."""
        params = jax.eval_shape(self._init_variables, jax.random.key(0))["params"]
        return {name: params[name] for name in self.model.frozen}

    def load_frozen(self) -> Any:
        """The discriminator's frozen parameters; the same ones in every run."""
        return self.model.frozen_params(jax.random.key(0))

    def logits(
        self,
        params: Any,
        model_state: Any,
        frozen: Any,
        images: Float[Array, "b H W 3"],
        key: Key[Array, ""],
    ) -> tuple[Float[Array, "b n"], Any]:
        """Logits of images, augmented at random, and the model state after this look at them.

        Args:
            params: the discriminator's.
            model_state: the discriminator's.
            frozen: of `load_frozen`.
            images: [-1, 1].
            key: of the augmentations.
        """
        augmented = diff_augment(key, images, self.settings.augment)
        return self._judge(params, model_state, frozen, augmented)

    def r1(
        self,
        params: Any,
        model_state: Any,
        frozen: Any,
        images: Float[Array, "b H W 3"],
        key: Key[Array, ""],
    ) -> Float[Array, ""]:
        """R1 of real images; arguments as of `logits`.

        It is taken at the images as the discriminator sees them: they are augmented first, and the
        gradient is by the pixels of the augmented images.
        """
        augmented = diff_augment(key, images, self.settings.augment)
        return r1_penalty(lambda x: self._judge(params, model_state, frozen, x)[0], augmented)

    def _judge(
        self, params: Any, model_state: Any, frozen: Any, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b n"], Any]:
        variables = {"params": {**params, **frozen}, **model_state}
        return self.model.apply(variables, images, train=True, mutable=list(model_state))

    def _init_variables(self, key: Key[Array, ""]) -> Any:
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), train=False)
