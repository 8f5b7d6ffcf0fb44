"""The adversary of a tokenizer: its push on the reconstruction, and its own training.

Source: paper 000, section 3.1, Eq. 1; VQGAN (Esser et al. 2021), section 3.1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.discriminators import build_discriminator
from vqjax.discriminators.augmentation import AUGMENTATIONS, diff_augment
from vqjax.errors import InputError
from vqjax.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from vqjax.registry import did_you_mean
from vqjax.training.optimizers import make_optimizer
from vqjax.training.stage import apply_gradient
from vqjax.training.state import Player

Images = Float[Array, "b H W 3"]


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """How the adversary takes part; `config.tokenizer.discriminator` without model and optimizer.

    Attributes:
        loss: of both players.
        weight: of the adversarial loss, 0 or more, besides the adaptive weight.
        adaptive: scale it by the ratio of both losses' gradients at the tokenizer's last layer.
        max_weight: clamp of that ratio.
        start: first step with an adversary.
        ramp: steps over which `weight` then grows linearly from 0, while the discriminator learns.
        augment: of DiffAugment's "color", "translation" and "cutout", on real and fake images.
    """

    loss: Literal["hinge", "non_saturating"] = "hinge"
    weight: float = 0.8
    adaptive: bool = True
    max_weight: float = 10.0
    start: int = 0
    ramp: int = 0
    augment: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Push:
    """What the adversary adds to a step of both players.

    Attributes:
        cotangent: at the reconstruction, weighted; added to that of the reconstruction loss.
        loss: the weighted adversarial loss of the tokenizer.
        grads: gradient of the discriminator's loss by its parameters.
        model_state: of the discriminator, after this batch.
        metrics: of both players.
    """

    cotangent: Images
    loss: Float[Array, ""]
    grads: Any
    model_state: Any
    metrics: dict[str, Float[Array, ""]]


class Adversary:
    """A discriminator with its loss and its optimizer."""

    def __init__(self, config: ConfigDict, steps: int, image_shape: tuple[int, int, int]):
        """Takes `config.tokenizer.discriminator`, the stage's steps and an image's (H, W, 3).

        Raises:
            InputError: unknown name or field, or a setting out of its range.
        """
        fields = dict(config)
        model, optimizer = fields.pop("model"), fields.pop("optimizer")
        registry.check_fields("tokenizer.discriminator", AdversarialLoss, fields)
        # On the command line, --config.tokenizer.discriminator.augment=color,translation.
        names = tuple(name for item in fields["augment"] for name in item.split(","))
        self.settings = AdversarialLoss(**{**fields, "augment": names})
        for name, good, expected in (
            ("weight", self.settings.weight >= 0, "0 or more"),
            ("max_weight", self.settings.max_weight > 0, "above 0"),
            ("start", 0 <= self.settings.start < steps, f"a step before the last of {steps}"),
            ("ramp", self.settings.ramp >= 0, "0 or more"),
        ):
            if not good:
                raise InputError(
                    f"config.tokenizer.discriminator.{name}={fields[name]}: {expected} is needed"
                )
        self.model = build_discriminator(model)
        for augmentation in self.settings.augment:
            if augmentation not in AUGMENTATIONS:
                raise InputError(
                    f"config.tokenizer.discriminator.augment has {augmentation!r}:"
                    f" {did_you_mean(augmentation, AUGMENTATIONS)}"
                )
        # Its first update is that of step `start`.
        self.optimizer, _ = make_optimizer(optimizer, steps - self.settings.start)
        self.image_shape = image_shape

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The discriminator's variables without its frozen parameters."""
        variables = dict(self._init(key))
        frozen = self.model.frozen
        variables["params"] = {k: v for k, v in variables["params"].items() if k not in frozen}
        return variables

    def frozen_shapes(self) -> Any:
        """Shapes of `load_frozen`."""
        params = jax.eval_shape(self._init, jax.random.key(0))["params"]
        return {name: params[name] for name in self.model.frozen}

    def load_frozen(self) -> Any:
        """The discriminator's frozen parameters; the same ones in every run."""
        return self.model.frozen_params(jax.random.key(0))

    def push(
        self,
        params: Any,
        model_state: Any,
        frozen: Any,
        images: Images,
        reconstructions: Images,
        cotangent: Images,
        last_layer_gradient: Callable[[Images], Float[Array, "..."]],
        rng: Key[Array, ""],
        step: Int[Array, ""],
    ) -> Push:
        """The adversary's part in a step, from `start` on.

        Args:
            params: the discriminator's.
            model_state: the discriminator's.
            frozen: as of `load_frozen`.
            images: real ones, [-1, 1].
            reconstructions: fake ones.
            cotangent: of the reconstruction loss at the reconstructions.
            last_layer_gradient: from a cotangent at the reconstructions to the gradient of the
                kernel of the tokenizer's last layer.
            rng: for the augmentations.
            step: finished steps.
        """
        key_push, key_real, key_fake = jax.random.split(rng, 3)

        def judge(params: Any, state: Any, seen: Images, key: Any, mutable: Any) -> Any:
            return self.model.apply(
                {"params": {**params, **frozen}, **state},
                diff_augment(key, seen, self.settings.augment),
                train=True,
                mutable=mutable,
            )

        def fool(reconstructions: Images) -> Float[Array, ""]:
            logits, _ = judge(params, model_state, reconstructions, key_push, list(model_state))
            return generator_loss(self.settings.loss, logits)

        def tell_apart(params: Any) -> tuple[Float[Array, ""], Any]:
            real, state = judge(params, model_state, images, key_real, list(model_state))
            fake, state = judge(params, state, reconstructions, key_fake, list(model_state))
            return discriminator_loss(self.settings.loss, real, fake), (state, real, fake)

        loss, push = jax.value_and_grad(fool)(reconstructions)
        metrics = {"generator_loss": loss}
        weight = self.settings.weight * self._ramp(step)
        if self.settings.adaptive:
            ours, theirs = last_layer_gradient(cotangent), last_layer_gradient(push)
            adaptive = adaptive_weight(ours, theirs, self.settings.max_weight)
            weight = weight * adaptive
            metrics |= {
                "adaptive_weight": adaptive,
                "last_layer_gradient_reconstruction": jnp.linalg.norm(ours),
                "last_layer_gradient_adversarial": jnp.linalg.norm(theirs),
            }
        gradient = jax.value_and_grad(tell_apart, has_aux=True)
        (own_loss, (state, real, fake)), grads = gradient(params)
        metrics |= {
            "adversarial_weight": weight,
            "discriminator_loss": own_loss,
            "accuracy_real": jnp.mean(real > 0),
            "accuracy_fake": jnp.mean(fake < 0),
        }
        return Push(weight * push, weight * loss, grads, state, metrics)

    def update(self, player: Player, grads: Any, model_state: Any) -> Player:
        """The discriminator after a step of its optimizer."""
        return apply_gradient(player, grads, model_state, self.optimizer)

    def _ramp(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The part of the weight that is reached, [0, 1]."""
        return jnp.clip((step + 1 - self.settings.start) / (self.settings.ramp + 1), 0.0, 1.0)

    def _init(self, key: Key[Array, ""]) -> Any:
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), train=False)
