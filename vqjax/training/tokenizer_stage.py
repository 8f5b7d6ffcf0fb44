"""Training of a tokenizer: reconstruction and codebook. Source: paper 000, section 3.1, Eq. 1."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax import quantizers, registry
from vqjax.features.lpips import LPIPS, load_lpips
from vqjax.losses import l1_loss, l2_loss, psnr
from vqjax.tokenizers import Tokenizer
from vqjax.training.optimizers import accumulate
from vqjax.training.pictures import pair_grid
from vqjax.training.sharding import to_host
from vqjax.training.stage import Metrics, Pictures, Stage, ToDevices, to_float
from vqjax.training.state import State, random_key

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
        self.eval_step = jax.jit(self._eval_step)
        model.grid(resolution, resolution)

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The tokenizer's variables."""
        params, restart = jax.random.split(key)
        images = jnp.zeros((1, *self.image_shape))
        return self.model.init({"params": params, "restart": restart}, images, train=True)

    def frozen_shapes(self) -> Any:
        """Shapes of the perceptual net's variables."""
        if not self.lpips:
            return {}
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        return jax.eval_shape(self.lpips.init, jax.random.key(0), images, images)

    def load_frozen(self, shapes: Any) -> Any:
        """The perceptual net's variables."""
        if not self.lpips:
            return {}
        _, variables = load_lpips(self.weights.perceptual_net)
        return jax.device_put(variables, jax.tree.map(lambda x: x.sharding, shapes))

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
            distance: Any = self.lpips.apply(frozen, reconstructions, images)
            terms["perceptual"] = jnp.mean(distance)
        total = sum(
            (getattr(self.weights, name) * value for name, value in terms.items()), jnp.zeros(())
        )
        return total, terms

    def train_step(
        self, state: State, frozen: Any, images: UInt8[Array, "b H W 3"], labels: Int[Array, "b"]
    ) -> tuple[State, Metrics]:
        """One update; the labels are not used."""

        def grad_fn(params: Any, model_state: Any, batch: Any, rng: Key[Array, ""]) -> Any:
            images = to_float(batch)

            def generate(params: Any) -> Any:
                (reconstructions, quantized), model_state_new = self.model.apply(
                    {"params": params, **model_state},
                    images,
                    train=True,
                    rngs={"restart": rng},
                    mutable=list(model_state),
                )
                outputs = (reconstructions, quantized.pop("vq_loss"))
                return outputs, (quantized, model_state_new)

            # The losses meet at the reconstruction, and their cotangent there is pulled back
            # through the generator once, however many critics look at it.
            (reconstructions, vq_loss), pull_back, (quantized, model_state) = jax.vjp(
                generate, params, has_aux=True
            )
            (loss, terms), cotangent = jax.value_and_grad(self.reconstruction_loss, has_aux=True)(
                reconstructions, images, frozen
            )
            vq_weight = jnp.asarray(self.weights.vq, vq_loss.dtype)
            (grads,) = pull_back((cotangent, vq_weight))
            del quantized["codes"]
            metrics = {
                "loss": loss + vq_weight * vq_loss,
                **terms,
                "vq_loss": vq_loss,
                **quantized,
            }
            return grads, model_state, metrics, jnp.ones(())

        player = state.generator
        rng = random_key(self.seed, f"{self.name}/train", state.step)
        grads, model_state, metrics = accumulate(
            grad_fn, player.params, player.model_state, images, rng, self.config.microbatches
        )
        player, update_metrics = self.update(player, grads, model_state, state.step)
        if quantizers.RESTARTS in model_state:
            restarts = model_state[quantizers.RESTARTS]
            ema = player.ema
            player = dataclasses.replace(
                player,
                params=quantizers.apply_restarts(player.params, restarts),
                ema=None if ema is None else quantizers.apply_restarts(ema, restarts),
                model_state={
                    **model_state,
                    quantizers.RESTARTS: jax.tree.map(jnp.zeros_like, restarts),
                },
            )
        return State(state.step + 1, player, state.discriminator), {**metrics, **update_metrics}

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
            sums["perceptual"] = jnp.sum(weight * self.lpips.apply(frozen, y, x))
        return sums, jnp.clip(y, -1.0, 1.0)
