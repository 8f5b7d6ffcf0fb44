"""Training of a tokenizer: reconstruction, codebook, adversary. Source: paper 000, Eq. 1."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from vqjax import quantizers, registry
from vqjax.data import Share
from vqjax.generation.image_grid import pair_grid
from vqjax.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from vqjax.losses.pixelwise import psnr
from vqjax.losses.reconstruction import LossWeights, ReconstructionLoss
from vqjax.parallel import to_host
from vqjax.pixels import to_float
from vqjax.random_keys import random_key
from vqjax.runs.build import build_stage_tokenizer
from vqjax.tokenizers.base import init_keys, step_keys
from vqjax.training.adversary import Adversary, adversarial_settings
from vqjax.training.codebook import (
    Reestimation,
    check_restart,
    warn_of_collapse,
    with_replaced_rows,
)
from vqjax.training.frechet_monitor import FrechetMonitor
from vqjax.training.optimizers import accumulate
from vqjax.training.stage import (
    Batch,
    Metrics,
    Pictures,
    Stage,
    ToDevices,
    TrainingData,
    apply_gradient,
)
from vqjax.training.state import State

PICTURES = 16


class Forward(NamedTuple):
    """The by-products of a forward pass of the tokenizer, beside reconstruction and loss.

    Attributes:
        features: input of the last layer.
        statistics: of the quantizer, for the metrics.
        model_state: the model's other collections after it.
    """

    features: Float[Array, "b h w c"]
    statistics: Metrics
    model_state: Any


class Looks(NamedTuple):
    """The discriminator's logits of a batch, and its state after them.

    Attributes:
        real: logits of the images.
        fake: logits of their reconstructions.
        losses: of the discriminator, unweighted, for the metrics.
        model_state: the discriminator's after both.
    """

    real: Float[Array, "b n"]
    fake: Float[Array, "b n"]
    losses: Metrics
    model_state: Any


class TokenizerStage(Stage):
    """Trains a tokenizer on images."""

    # Whether encoder and codebook are trained too.
    trains_codes = True

    def __init__(self, name: str, config: ConfigDict, workdir: epath.Path):
        """Takes the stage's name, the run's config and its folder.

        Raises:
            InputError: an unknown setting, one out of its range, or images that the tokenizer
                cannot take.
        """
        super().__init__(name, config, workdir)
        own, side = config[name], config.data.resolution
        self.weights = registry.from_fields(f"{name}.loss", LossWeights, own.loss)
        self.reconstruction_loss = ReconstructionLoss(self.weights)
        self.model = build_stage_tokenizer(config, name)
        self.image_shape = (side, side, 3)
        part, steps = f"{name}.discriminator", self.settings.steps
        self.adversary = None
        if own.discriminator.model.name != "none":
            self.adversary = Adversary(part, own.discriminator, steps, self.image_shape)
        else:
            # No setting is dropped, used or not.
            adversarial_settings(part, own.discriminator)
        self.frechet = None
        if self.frechet_settings.images:
            self.frechet = FrechetMonitor(self.frechet_settings, prefix="r")
        self.eval_step = jax.jit(self._eval_step)
        if self.trains_codes:
            check_restart(f"{name}.model.quantizer", self.model, self.settings, side)
            kmeans = own.get("kmeans", {})
            self.reestimation = Reestimation(
                f"{name}.kmeans", kmeans, self.model, self.settings, side
            )

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The tokenizer's variables."""
        images = jnp.zeros((1, *self.image_shape))
        return self.model.init(init_keys(self.model, key), images, train=True)

    def init(self, key: Key[Array, ""]) -> State:
        """The state before the first step, with that of the discriminator."""
        state = super().init(key)
        if not self.adversary:
            return state
        discriminator = self.adversary.init(jax.random.fold_in(key, 1))
        return dataclasses.replace(state, discriminator=discriminator)

    def frozen_shapes(self) -> Any:
        """Shapes of the nets that the losses look through: "reconstruction" and "discriminator"."""
        shapes = {"reconstruction": self.reconstruction_loss.frozen_shapes(self.image_shape)}
        if self.adversary:
            shapes["discriminator"] = self.adversary.frozen_shapes()
        return shapes

    def load_frozen(self, shapes: Any) -> Any:
        """The frozen networks' parameters."""
        frozen = {"reconstruction": self.reconstruction_loss.load_frozen()}
        if self.adversary:
            frozen["discriminator"] = self.adversary.load_frozen()
        shardings = {name: jax.tree.map(lambda x: x.sharding, shapes[name]) for name in frozen}
        return jax.device_put(frozen, shardings)

    def variables(self, params: Any, model_state: Any, frozen: Any) -> Any:
        """All variables of the tokenizer, from those that are trained and those that are not."""
        del frozen
        return {"params": params, **model_state}

    def phase(self, step: int) -> int:
        """0 without the adversary; from its first step on 2 in steps with R1, and 1 in others."""
        if self.adversary is None or step < self.adversary.settings.start:
            return 0
        return 2 if self.adversary.settings.has_r1(step) else 1

    def between_steps(
        self,
        state: State,
        step: int,
        data: TrainingData,
        frozen: Any,
        to_devices: ToDevices,
        share: Share,
    ) -> tuple[State, dict[str, float]]:
        """Re-estimates the codebook by k-means, where it is time to, of the next batches."""
        if not (self.trains_codes and self.reestimation.is_due(step)):
            return state, {}
        batches = self.training_batches(data, frozen, to_devices, start_step=step, share=share)
        key = random_key(self.seed, f"{self.name}/kmeans", step)
        with closing(batches):
            some = itertools.islice(batches, self.reestimation.batches)
            images = (to_devices(batch["image"]) for batch in some)
            model, metrics = self.reestimation(state.model, images, key)
        return dataclasses.replace(state, model=model), metrics

    def train_step(
        self,
        state: State,
        frozen: Any,
        batch: Batch,
        key: Key[Array, ""],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update of the tokenizer and, from its start on, of the discriminator."""
        # Several programs, since XLA compiles what is inside of a conditional badly.
        adversary = None if phase == 0 else self.adversary
        with_r1 = adversary is not None and adversary.settings.r1_gamma > 0 and phase != 1
        model_states = {"model": state.model.model_state}
        if adversary:
            model_states["discriminator"] = state.discriminator.model_state
        gradients = functools.partial(self._gradients, state, frozen, adversary, with_r1)
        rng = jax.random.fold_in(key, state.step)
        grads, model_states, metrics = accumulate(
            gradients, model_states, batch["image"], rng, self.settings.microbatches
        )

        model, discriminator = state.model, state.discriminator
        model, update_metrics = self.update(
            model, grads["model"], model_states["model"], state.step
        )
        metrics |= update_metrics
        noted = self.model.replaced_codes(model.model_state) if self.trains_codes else None
        if noted is not None:
            replaced, model_state = noted
            model = with_replaced_rows(
                dataclasses.replace(model, model_state=model_state), replaced
            )
        if adversary:
            metrics["discriminator_gradient_norm"] = optax.tree.norm(grads["discriminator"])
            discriminator = apply_gradient(
                discriminator,
                grads["discriminator"],
                model_states["discriminator"],
                adversary.optimizer,
            )
        return State(state.step + 1, model, discriminator), metrics

    def _gradients(
        self,
        state: State,
        frozen: Any,
        adversary: Adversary | None,
        with_r1: bool,
        model_states: dict[str, Any],
        images: UInt8[Array, "b H W 3"],
        rng: Key[Array, ""],
    ) -> tuple[dict[str, Any], dict[str, Any], Metrics, Float[Array, ""]]:
        """Gradients of a batch, model states after it, metrics, and the batch's weight."""
        params = state.model.params
        x = to_float(images)

        # 1. One forward pass of the tokenizer.
        def reconstruct(params: Any) -> Any:
            outputs, model_state = self.model.apply(
                self.variables(params, model_states["model"], frozen),
                x,
                train=self.trains_codes,
                rngs=step_keys(self.model, rng),
                mutable=list(model_states["model"]),
                method="features",
            )
            features, _, vq_loss, statistics = outputs
            y = self._to_pixels(params, features)
            return (y, vq_loss), Forward(features, statistics, model_state)

        outputs, pull_back, forward = jax.vjp(reconstruct, params, has_aux=True)
        y, vq_loss = outputs

        # 2. The losses meet at the reconstruction: each gives its gradient there (cotangent).
        def reconstruction(y: Float[Array, "b H W 3"]) -> Any:
            return self.reconstruction_loss(frozen["reconstruction"], y, x)

        value, cotangent = jax.value_and_grad(reconstruction, has_aux=True)(y)
        loss, terms = value
        metrics = {**terms, **forward.statistics}
        vq_weight = jnp.zeros_like(vq_loss)
        if self.trains_codes:
            vq_weight = jnp.asarray(self.weights.vq, vq_loss.dtype)
            loss += vq_weight * vq_loss
            metrics["vq_loss"] = vq_loss
        grads: dict[str, Any] = {}
        new_states = {"model": forward.model_state}

        # 3. The adversary looks at the reconstruction three times, each look augmented by itself.
        if adversary:
            trained, fixed = state.discriminator.params, frozen["discriminator"]
            before = model_states["discriminator"]
            key_generator, key_real, key_fake = jax.random.split(jax.random.fold_in(rng, 1), 3)

            def adversarial(y: Float[Array, "b H W 3"]) -> Float[Array, ""]:
                logits, _ = adversary.logits(trained, before, fixed, y, key_generator)
                return generator_loss(adversary.settings.loss, logits)

            adversarial_loss, adversarial_cotangent = jax.value_and_grad(adversarial)(y)
            weight = adversary.settings.weight_at(state.step)
            if adversary.settings.adaptive:
                ours = self._last_layer_gradient(params, forward.features, cotangent)
                theirs = self._last_layer_gradient(params, forward.features, adversarial_cotangent)
                adaptive = adaptive_weight(ours, theirs, adversary.settings.max_weight)
                weight = weight * adaptive
                metrics["adaptive_weight"] = adaptive
                metrics["last_layer_gradient_reconstruction"] = jnp.linalg.norm(ours)
                metrics["last_layer_gradient_adversarial"] = jnp.linalg.norm(theirs)
            cotangent += weight * adversarial_cotangent
            loss += weight * adversarial_loss

            def discriminate(trained: Any) -> Any:
                real, after = adversary.logits(trained, before, fixed, x, key_real)
                fake, after = adversary.logits(trained, after, fixed, y, key_fake)
                own_loss = discriminator_loss(adversary.settings.loss, real, fake)
                losses = {"discriminator_loss": own_loss}
                if with_r1:
                    losses["r1"] = adversary.r1(trained, before, fixed, x, key_real)
                    own_loss += adversary.settings.r1_weight * losses["r1"]
                return own_loss, Looks(real, fake, losses, after)

            grads["discriminator"], looks = jax.grad(discriminate, has_aux=True)(trained)
            new_states["discriminator"] = looks.model_state
            metrics |= {
                "generator_loss": adversarial_loss,
                "adversarial_weight": weight,
                **looks.losses,
                "accuracy_real": jnp.mean(looks.real > 0),
                "accuracy_fake": jnp.mean(looks.fake < 0),
            }

        # 4. One backward pass of the tokenizer.
        (grads["model"],) = pull_back((cotangent, vq_weight))
        metrics["loss"] = loss
        return grads, new_states, metrics, jnp.ones(())

    def _to_pixels(self, params: Any, features: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The tokenizer's last layer."""
        own = {"params": {self.model.last_layer: params[self.model.last_layer]}}
        return self.model.apply(own, features, method="to_pixels")

    def _last_layer_gradient(
        self, params: Any, features: Float[Array, "b h w c"], cotangent: Float[Array, "b H W 3"]
    ) -> Float[Array, "..."]:
        """The gradient by the kernel of the last layer, from the one at the reconstruction."""
        layer = params[self.model.last_layer]

        def to_pixels(kernel: Any) -> Any:
            return self._to_pixels({self.model.last_layer: {**layer, "kernel": kernel}}, features)

        _, pull_back = jax.vjp(to_pixels, layer["kernel"])
        return pull_back(cotangent)[0]

    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Batch], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """Reconstruction errors, and the codebook's use over all batches; input over output.

        Warns where few of the codes that are trained are in use.
        """
        sums: Any = None
        pictures: Pictures = {}
        variables = self.variables(state.model.weights, state.model.model_state, frozen)
        for batch in batches:
            images, valid = to_devices((batch["image"], batch["valid"]))
            batch_sums, reconstructions = self.eval_step(variables, frozen, images, valid)
            sums = batch_sums if sums is None else jax.tree.map(jnp.add, sums, batch_sums)
            if self.frechet and self.frechet.wants_more:
                self.frechet.add(to_float(images), reconstructions, to_host(valid))
            if not pictures:
                shown = to_host(images)[:PICTURES], to_host(reconstructions)[:PICTURES]
                pictures["reconstructions"] = pair_grid(
                    np.asarray(to_float(shown[0])), shown[1], columns=PICTURES // 2
                )
        sums = jax.tree.map(to_host, sums)
        counts = jnp.asarray(sums.pop("codes"))
        number = sums.pop("images")
        metrics = {name: float(total / number) for name, total in sums.items()}
        metrics["codebook_usage"] = float(quantizers.usage(counts))
        metrics["codebook_perplexity"] = float(quantizers.perplexity(counts))
        if self.trains_codes:
            warn_of_collapse(self.name, self.model.quantizer, counts, int(number), int(state.step))
        if self.frechet:
            metrics |= self.frechet.distance()
        return metrics, pictures

    def _eval_step(
        self, variables: Any, frozen: Any, images: UInt8[Array, "b H W 3"], valid: Any
    ) -> tuple[dict[str, Array], Float[Array, "b H W 3"]]:
        """Sums over the valid images of a batch, and their reconstructions."""
        x = to_float(images)
        y, tokens, _, _ = self.model.apply(variables, x, train=False)
        weight = valid.astype(jnp.float32)
        counted = valid[:, None] & tokens.present
        sums = {
            "images": jnp.sum(weight),
            "psnr": jnp.sum(weight * psnr(x, y)),
            "l1": jnp.sum(weight * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))),
            "l2": jnp.sum(weight * jnp.mean((x - y) ** 2, axis=(1, 2, 3))),
            "codes": quantizers.count_codes(tokens.codes, self.model.num_codes, counted),
        }
        for name, distances in self.reconstruction_loss.perceptual(
            frozen["reconstruction"], y, x
        ).items():
            sums[name] = jnp.sum(weight * distances)
        return sums, jnp.clip(y, -1.0, 1.0)
