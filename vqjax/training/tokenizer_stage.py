"""Training of a tokenizer: reconstruction, codebook, adversary. Source: paper 000, Eq. 1."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax import quantizers, registry
from vqjax.generation.image_grid import pair_grid
from vqjax.losses.perceptual import LPIPS, load_lpips
from vqjax.losses.pixelwise import l1_loss, l2_loss, psnr
from vqjax.parallel import to_host
from vqjax.pixels import to_float
from vqjax.tokenizers import Tokenizer
from vqjax.training.adversary import Adversary
from vqjax.training.frechet_monitor import FrechetMonitor
from vqjax.training.optimizers import accumulate
from vqjax.training.stage import Metrics, Pictures, Stage, ToDevices, new_player
from vqjax.training.state import Player, State, random_key

PICTURES = 16


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of a tokenizer's loss; a term of weight 0 is not computed.

    Attributes:
        l1: mean absolute error of the pixels.
        l2: mean squared error of the pixels.
        perceptual: LPIPS.
        perceptual_net: trunk of LPIPS, "vgg16" or "alexnet".
        vq: the quantizer's loss.
    """

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 1.0
    perceptual_net: Literal["vgg16", "alexnet"] = "vgg16"
    vq: float = 1.0


class TokenizerStage(Stage):
    """Trains a tokenizer on images."""

    def __init__(self, name: str, config: ConfigDict, seed: int, model: Tokenizer, resolution: int):
        """Takes the stage's sub-config, the run's seed, the tokenizer and the images' side.

        Raises:
            InputError: unknown loss term, or a resolution that the tokenizer cannot take.
        """
        super().__init__(name, config, seed)
        registry.check_fields(f"{name}.loss", LossWeights, config.loss)
        self.model = model
        self.image_shape = (resolution, resolution, 3)
        self.weights = LossWeights(**config.loss)
        self.lpips = LPIPS(self.weights.perceptual_net) if self.weights.perceptual else None
        self.adversary = None
        if config.discriminator.model.name != "none":
            self.adversary = Adversary(config.discriminator, config.steps, self.image_shape)
        self.frechet = None
        if config.frechet.images:
            self.frechet = FrechetMonitor(name, config.frechet, prefix="r")
        self.eval_step = jax.jit(self._eval_step)
        model.grid(resolution, resolution)

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The tokenizer's variables."""
        params, restart = jax.random.split(key)
        images = jnp.zeros((1, *self.image_shape))
        return self.model.init({"params": params, "restart": restart}, images, train=True)

    def init(self, key: Key[Array, ""]) -> State:
        """The state before the first step, of both players."""
        state = super().init(key)
        if not self.adversary:
            return state
        variables = self.adversary.init_variables(jax.random.fold_in(key, 1))
        opponent = new_player(variables, self.adversary.optimizer, average=False)
        return dataclasses.replace(state, discriminator=opponent)

    def frozen_shapes(self) -> Any:
        """Shapes of what the losses look through: "perceptual" and "discriminator"."""
        shapes: dict[str, Any] = {}
        if self.lpips:
            images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
            key = jax.random.key(0)
            shapes["perceptual"] = jax.eval_shape(self.lpips.init, key, images, images)
        if self.adversary:
            shapes["discriminator"] = self.adversary.frozen_shapes()
        return shapes

    def load_frozen(self, shapes: Any) -> Any:
        """The frozen networks' parameters."""
        frozen: dict[str, Any] = {}
        if self.lpips:
            _, frozen["perceptual"] = load_lpips(self.weights.perceptual_net)
        if self.adversary:
            frozen["discriminator"] = self.adversary.load_frozen()
        return jax.device_put(frozen, jax.tree.map(lambda x: x.sharding, shapes))

    def reconstruction_loss(
        self,
        reconstructions: Float[Array, "b H W 3"],
        images: Float[Array, "b H W 3"],
        frozen: Any,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum of the pixel and perceptual terms, and each of them unweighted."""
        terms = {}
        if self.weights.l1:
            terms["l1"] = l1_loss(reconstructions, images)
        if self.weights.l2:
            terms["l2"] = l2_loss(reconstructions, images)
        if self.lpips:
            distance: Any = self.lpips.apply(frozen["perceptual"], reconstructions, images)
            terms["perceptual"] = jnp.mean(distance)
        total = sum(
            (getattr(self.weights, name) * value for name, value in terms.items()), jnp.zeros(())
        )
        return total, terms

    def phase(self, step: int) -> int:
        """1 from the adversary's first step on."""
        return int(self.adversary is not None and step >= self.adversary.settings.start)

    def train_step(
        self,
        state: State,
        frozen: Any,
        images: UInt8[Array, "b H W 3"],
        labels: Int[Array, "b"],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update of the players that take part; the labels are not used."""
        player, opponent = state.generator, state.discriminator
        # Two programs, since XLA compiles what is inside of a conditional badly.
        adversary = None if phase == 0 else self.adversary

        def grad_fn(params: Any, model_state: Any, batch: Any, rng: Key[Array, ""]) -> Any:
            images = to_float(batch)

            def generate(own: Any) -> Any:
                outputs: Any = self.model.apply(
                    {"params": own, **model_state[0]},
                    images,
                    train=True,
                    rngs={"restart": rng},
                    mutable=[*model_state[0], "intermediates"],
                )
                (reconstructions, quantized), new = outputs
                (features,) = new.pop("intermediates")["last_features"]
                return (reconstructions, quantized.pop("vq_loss")), (quantized, new, features)

            # The losses meet at the reconstruction, and their cotangent there is pulled back
            # through the generator once, however many critics look at it.
            (reconstructions, vq_loss), pull_back, (quantized, new_state, features) = jax.vjp(
                generate, params[0], has_aux=True
            )
            (loss, terms), cotangent = jax.value_and_grad(self.reconstruction_loss, has_aux=True)(
                reconstructions, images, frozen
            )
            vq_weight = jnp.asarray(self.weights.vq, vq_loss.dtype)
            loss += vq_weight * vq_loss
            metrics = {**terms, "vq_loss": vq_loss, **quantized}
            del metrics["codes"]

            opponent_grads, opponent_state = None, None
            if adversary:
                push = adversary.push(
                    params[1],
                    model_state[1],
                    frozen["discriminator"],
                    images,
                    reconstructions,
                    cotangent,
                    functools.partial(self._last_layer_gradient, params[0], features),
                    jax.random.fold_in(rng, 1),
                    state.step,
                )
                cotangent += push.cotangent
                loss += push.loss
                metrics |= push.metrics
                opponent_grads, opponent_state = push.grads, push.model_state
            (grads,) = pull_back((cotangent, vq_weight))
            metrics["loss"] = loss
            return (grads, opponent_grads), (new_state, opponent_state), metrics, jnp.ones(())

        rng = random_key(self.seed, f"{self.name}/train", state.step)
        (grads, opponent_grads), (model_state, opponent_state), metrics = accumulate(
            grad_fn,
            (player.params, opponent.params if adversary else None),
            (player.model_state, opponent.model_state if adversary else None),
            images,
            rng,
            self.config.microbatches,
        )
        player, update_metrics = self.update(player, grads, model_state, state.step)
        metrics |= update_metrics
        if quantizers.RESTARTS in model_state:
            player = _restart_codes(player)
        if adversary:
            metrics["discriminator_gradient_norm"] = optax.tree.norm(opponent_grads)
            opponent = adversary.update(opponent, opponent_grads, opponent_state)
        return State(state.step + 1, player, opponent), metrics

    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Any], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """Reconstruction errors, and the codebook's use over all batches; input over output."""
        sums: Any = None
        pictures: Pictures = {}
        for batch in batches:
            images, valid = to_devices((batch["image"], batch["valid"]))
            batch_sums, reconstructions = self.eval_step(
                state.generator.variables, frozen, images, valid
            )
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
        if self.frechet:
            metrics |= self.frechet.distance()
        return metrics, pictures

    def _eval_step(
        self, variables: Any, frozen: Any, images: UInt8[Array, "b H W 3"], valid: Any
    ) -> tuple[dict[str, Array], Float[Array, "b H W 3"]]:
        """Sums over the valid images of a batch, and their reconstructions."""
        x = to_float(images)
        y, quantized = self.model.apply(variables, x, train=False)
        weight = valid.astype(jnp.float32)
        counted = jnp.where(valid[:, None, None], quantized["codes"], self.model.num_codes)
        sums = {
            "images": jnp.sum(weight),
            "psnr": jnp.sum(weight * psnr(x, y)),
            "l1": jnp.sum(weight * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))),
            "l2": jnp.sum(weight * jnp.mean((x - y) ** 2, axis=(1, 2, 3))),
            "codes": quantizers.count_codes(counted, self.model.num_codes + 1)[:-1],
        }
        if self.lpips:
            sums["perceptual"] = jnp.sum(weight * self.lpips.apply(frozen["perceptual"], y, x))
        return sums, jnp.clip(y, -1.0, 1.0)

    def _last_layer_gradient(
        self, params: Any, features: Float[Array, "b H W c"], cotangent: Float[Array, "b H W 3"]
    ) -> Float[Array, "..."]:
        """The gradient by the kernel of the tokenizer's last layer, which `features` go into."""
        layer = params[self.model.last_layer]

        def to_pixels(kernel: Any) -> Any:
            own = {"params": {self.model.last_layer: {**layer, "kernel": kernel}}}
            return self.model.apply(own, features, method="to_pixels")

        _, pull_back = jax.vjp(to_pixels, layer["kernel"])
        return pull_back(cotangent)[0]


def _restart_codes(player: Player) -> Player:
    """Moves the codes that the quantizer found dead, in parameters and average alike."""
    restarts = player.model_state[quantizers.RESTARTS]
    ema = player.ema
    return dataclasses.replace(
        player,
        params=quantizers.apply_restarts(player.params, restarts),
        ema=None if ema is None else quantizers.apply_restarts(ema, restarts),
        model_state={
            **player.model_state,
            quantizers.RESTARTS: jax.tree.map(jnp.zeros_like, restarts),
        },
    )
