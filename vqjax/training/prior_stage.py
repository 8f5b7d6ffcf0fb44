"""Training of a prior on a frozen tokenizer's tokens. Source: paper 000, section 3.3, Eq. 2."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.errors import InputError
from vqjax.generation.image_grid import image_grid
from vqjax.parallel import to_host
from vqjax.pixels import to_float
from vqjax.priors import Prior
from vqjax.runs.weights import load_weights
from vqjax.samplers.multigrained import BlockwiseSampling, sample
from vqjax.tokenizers import Tokenizer
from vqjax.tokens import Tokens
from vqjax.training.frechet_monitor import FrechetMonitor
from vqjax.training.optimizers import accumulate
from vqjax.training.stage import Metrics, Pictures, Stage, ToDevices
from vqjax.training.state import State, random_key

MASK_RATIOS = (0.25, 0.5, 0.75, 1.0)
SAMPLES = 36


def sampling_spec(prior: Prior, grid: tuple[int, int], config: ConfigDict) -> BlockwiseSampling:
    """How a prior is sampled on a latent grid, with the settings of `config.sampling`.

    Raises:
        InputError: a setting out of its range, or guidance of a prior that was not trained for it.
    """
    names = {field.name for field in dataclasses.fields(BlockwiseSampling)}
    spec = BlockwiseSampling(
        grid=grid,
        block_size=prior.block_size,
        halo=prior.halo,
        mask_id=prior.mask_id,
        **{name: value for name, value in config.items() if name in names},
    )
    if spec.guidance != 1.0 and not prior.num_classes:
        raise InputError(
            f"sampling guidance={spec.guidance}: this prior is unconditional, so leave it at 1"
        )
    if spec.guidance != 1.0 and not prior.condition_dropout:
        raise InputError(
            f"sampling guidance={spec.guidance}: this prior has never seen the null condition, so"
            " leave it at 1, or train one with --config.prior.model.condition_dropout=0.1"
        )
    return spec


def condition_of(prior: Prior, labels: Int[Array, "b"]) -> Int[Array, "b c"]:
    """The condition of labelled images: the class, or nothing for an unconditional prior."""
    return labels[:, None] if prior.num_classes else labels[:, None][:, :0]


def init_prior(prior: Prior, key: Key[Array, ""]) -> Any:
    """Fresh variables of a prior."""
    params, mask = jax.random.split(key)
    tokens = Tokens.dense(jnp.zeros((1, *prior.grid), jnp.int32))
    condition = condition_of(prior, jnp.zeros((1,), jnp.int32))
    return prior.init(
        {"params": params, "mask": mask}, tokens, condition, train=False, method="loss"
    )


def prior_shapes(prior: Prior) -> Any:
    """Shapes of a prior's variables."""
    return jax.eval_shape(lambda key: init_prior(prior, key), jax.random.key(0))


def tokenizer_shapes(tokenizer: Tokenizer, resolution: int) -> Any:
    """Shapes of a tokenizer's variables; `resolution` is any side in pixels that it takes."""
    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    keys = {"params": jax.random.key(0), "restart": jax.random.key(0)}
    return jax.eval_shape(lambda x: tokenizer.init(keys, x), images)


class PriorStage(Stage):
    """Trains a prior on tokens that the tokenizer makes of each batch."""

    def __init__(
        self,
        name: str,
        config: ConfigDict,
        seed: int,
        model: Prior,
        tokenizer: Tokenizer,
        tokenizer_folder: epath.Path,
        tokenizer_config: ConfigDict,
        resolution: int,
        sampling: ConfigDict,
    ):
        """Takes what there is to train and to train on.

        Args:
            name: of the stage.
            config: the stage's sub-config.
            seed: of the run.
            model: the prior.
            tokenizer: whose tokens it models.
            tokenizer_folder: its stage's folder, with checkpoints.
            tokenizer_config: its stage's sub-config.
            resolution: side of the images in pixels.
            sampling: `config.sampling`, for the samples drawn at every evaluation.

        Raises:
            InputError: a sampling setting out of its range.
        """
        super().__init__(name, config, seed)
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_config = tokenizer_config
        self.tokenizer_folder = tokenizer_folder
        self.resolution = resolution
        self.grid = tokenizer.grid(resolution, resolution)
        self.spec = sampling_spec(model, self.grid, sampling)
        self.samples = min(SAMPLES, sampling.batch_size)
        self.sampling_batch = sampling.batch_size
        self.tile = sampling.decode_tile
        tokenizer.check_tile(self.tile)
        self.frechet = None
        if config.frechet.images:
            self.frechet = FrechetMonitor(name, config.frechet)
        self.apply: Callable[..., Any] = model.apply
        self.apply_tokenizer: Callable[..., Any] = tokenizer.apply
        self.eval_step = jax.jit(self._eval_step)
        self.decode = jax.jit(self._decode)

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The prior's variables."""
        return init_prior(self.model, key)

    def frozen_shapes(self) -> Any:
        """Shapes of the tokenizer's variables."""
        return tokenizer_shapes(self.tokenizer, self.resolution)

    def load_frozen(self, shapes: Any) -> Any:
        """The trained tokenizer's variables."""
        return load_weights(self.tokenizer_folder, self.tokenizer_config, shapes)[0]

    def train_step(
        self,
        state: State,
        frozen: Any,
        images: UInt8[Array, "b H W 3"],
        labels: Int[Array, "b"],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update; there is one phase."""

        def grad_fn(params: Any, model_state: Any, batch: Any, rng: Key[Array, ""]) -> Any:
            tokens, condition = batch
            mask, dropout = jax.random.split(rng)

            def loss_fn(params: Any) -> tuple[Float[Array, ""], Metrics]:
                return self.apply(
                    {"params": params, **model_state},
                    tokens,
                    condition,
                    train=True,
                    method="loss",
                    rngs={"mask": mask, "dropout": dropout},
                )

            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            weight = metrics.pop("predicted_tokens")
            return grads, model_state, {"loss": loss, **metrics}, weight

        player = state.generator
        tokens = self.apply_tokenizer(frozen, to_float(images), method="encode")
        rng = random_key(self.seed, f"{self.name}/train", state.step)
        grads, model_state, metrics = accumulate(
            grad_fn,
            player.params,
            player.model_state,
            (tokens, condition_of(self.model, labels)),
            rng,
            self.config.microbatches,
        )
        player, update_metrics = self.update(player, grads, model_state, state.step)
        return State(state.step + 1, player, state.discriminator), {**metrics, **update_metrics}

    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Any], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """Held-out loss at fixed mask ratios beside the unigram entropy of the same codes; samples.

        The context is what sampling sees: blocks before the query block known, those after it not.
        """
        sums: Any = None
        variables = state.generator.variables
        for i, batch in enumerate(batches):
            images, labels, valid = to_devices((batch["image"], batch["label"], batch["valid"]))
            key = random_key(self.seed, f"{self.name}/evaluate", i)
            batch_sums = self.eval_step(variables, frozen, images, labels, valid, key)
            sums = batch_sums if sums is None else jax.tree.map(jnp.add, sums, batch_sums)
            if self.frechet and self.frechet.wants_more:
                for part in self._parts(batch):
                    images, labels, valid = to_devices(part)
                    key = random_key(self.seed, f"{self.name}/frechet", self.frechet.batches)
                    made = self.decode(frozen, self._draw(variables, key, labels))
                    self.frechet.add(to_float(images), made, to_host(valid))
        sums = jax.tree.map(to_host, sums)
        counts = jnp.asarray(sums.pop("codes"))
        losses = sums["nats"] / sums["tokens"]
        metrics = {
            f"loss_at_{ratio}": float(x) for ratio, x in zip(MASK_RATIOS, losses, strict=True)
        }
        metrics["unigram_entropy"] = math.log(float(quantizers.perplexity(counts)))
        if self.frechet:
            metrics |= self.frechet.distance()
        return metrics, {"samples": image_grid(self._samples(variables, frozen), columns=6)}

    def _eval_step(
        self,
        variables: Any,
        frozen: Any,
        images: UInt8[Array, "b H W 3"],
        labels: Int[Array, "b"],
        valid: Any,
        key: Key[Array, ""],
    ) -> dict[str, Array]:
        """Sums over the valid images: nats of masked tokens, their number, the codes' counts."""
        tokens = self.apply_tokenizer(frozen, to_float(images), method="encode")
        condition = condition_of(self.model, labels)
        counted = jnp.where(valid[:, None], tokens.codes, self.model.num_codes)
        codes = quantizers.count_codes(counted, self.model.num_codes + 1)[:-1]

        def masked(ratio: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            loss, metrics = self.apply(
                variables,
                tokens,
                condition,
                train=False,
                mask_ratio=ratio,
                context="prefix",
                valid=valid,
                method="loss",
                rngs={"mask": key},
            )
            return loss * metrics["predicted_tokens"], metrics["predicted_tokens"]

        # One after the other in a loop, which is compiled once.
        nats, tokens_masked = jax.lax.map(masked, jnp.asarray(MASK_RATIOS))
        return {"codes": codes, "nats": nats, "tokens": tokens_masked}

    def _samples(self, variables: Any, frozen: Any) -> Float[Any, "n H W 3"]:
        """Images drawn with the same key at every evaluation, to be compared; classes in turn."""
        labels = jnp.arange(self.samples) % max(self.model.num_classes, 1)
        key = random_key(self.seed, f"{self.name}/sample", 0)
        return to_host(self.decode(frozen, self._draw(variables, key, labels)))

    def _draw(self, variables: Any, key: Key[Array, ""], labels: Int[Array, "b"]) -> Tokens:
        """Tokens of new images of these classes."""
        known = jnp.zeros((len(labels), self.grid[0] * self.grid[1]), jnp.int32)
        condition = condition_of(self.model, labels)
        unknown = jnp.zeros(known.shape, bool)
        return sample(self.apply, variables, key, condition, known, unknown, self.spec)

    def _parts(self, batch: Any) -> list[tuple[Any, ...]]:
        """Images, labels and validity of a batch, in parts no larger than are sampled at once."""
        # Of each process's rows; every device keeps at least one of each part.
        rows = len(batch["label"])
        most = max(self.config.batch_size // jax.device_count(), 1)
        parts = next(
            n
            for n in range(1, most + 1)
            if n == most or (most % n == 0 and self.config.batch_size <= n * self.sampling_batch)
        )
        if rows % parts:
            parts = 1
        split = (np.split(batch[key], parts) for key in ("image", "label", "valid"))
        return list(zip(*split, strict=True))

    def _decode(self, frozen: Any, tokens: Tokens) -> Float[Array, "b H W 3"]:
        images = self.apply_tokenizer(frozen, tokens, self.tile, method="decode")
        return jnp.clip(images, -1.0, 1.0)
