"""Training of a prior on a frozen tokenizer's tokens. Source: paper 000, section 3.3, Eq. 2."""

import math
from collections.abc import Generator, Iterable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax import quantizers
from vqjax.conditions import Condition
from vqjax.data import Share
from vqjax.data.pipeline import enumerated_views
from vqjax.data.token_sets import TokenSet, token_batches
from vqjax.generation.image_grid import image_grid
from vqjax.parallel import to_host
from vqjax.pixels import to_float
from vqjax.priors.base import init_prior
from vqjax.random_keys import random_key, split_by_name
from vqjax.registry import named_in
from vqjax.runs.build import (
    build_sampling,
    build_stage_prior,
    build_stage_tokenizer,
    token_settings,
)
from vqjax.runs.weights import load_tokenizer, split_decoder
from vqjax.samplers import SAMPLERS
from vqjax.tokenizers.base import tokenizer_shapes, tokens_shape
from vqjax.tokens import Tokens
from vqjax.training.frechet_monitor import FrechetMonitor
from vqjax.training.optimizers import accumulate
from vqjax.training.stage import Batch, Metrics, Pictures, Stage, ToDevices, TrainingData
from vqjax.training.state import State
from vqjax.training.token_data import fits_memory, open_tokens, token_form, tokens_in_memory

SAMPLES = 36


class PriorStage(Stage):
    """Trains a prior on tokens: those that the tokenizer makes of a batch, or made before."""

    def __init__(self, name: str, config: ConfigDict, workdir: epath.Path, condition: Condition):
        """Takes the stage's name, the run's config, its folder and its condition.

        Raises:
            InputError: an unknown setting, one out of its range, or models that do not fit.
        """
        super().__init__(name, config, workdir)
        side = config.data.resolution
        self.condition = condition
        self.tokenizer = build_stage_tokenizer(config, name)
        self.model = build_stage_prior(config, name, condition)
        self.resolution = side
        self.grid = self.tokenizer.grid(side, side)
        self.tokens_from = token_settings(config, name)
        self.sampling = build_sampling(config, name, self.model)
        self.tokenizer.check_decode_tile(self.sampling.generation.decode_tile)
        self.frechet = None
        if self.frechet_settings.images:
            self.frechet = FrechetMonitor(self.frechet_settings)
        self.eval_step = jax.jit(self._eval_step)
        self.encode_in_parts = jax.jit(self._encode_in_parts)
        self.decode = jax.jit(self._decode)

    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The prior's variables."""
        tokens = tokens_shape(self.tokenizer, self.resolution).codes.shape[1]
        return init_prior(self.model, tokens, self.condition.length, key)

    def frozen_shapes(self) -> Any:
        """Shapes of the tokenizer's variables."""
        return tokenizer_shapes(self.tokenizer, self.resolution)

    def load_frozen(self, shapes: Any) -> Any:
        """The trained tokenizer's variables."""
        mesh = jax.tree.leaves(shapes)[0].sharding.mesh
        return load_tokenizer(self.run_config, self.workdir, self.name, self.tokenizer, mesh)[0]

    def check_data(self, data: TrainingData) -> None:
        """Looks at the tokens that are to be trained on; at their tokenizer's weights later.

        And at what is told of held-out images: that of training images is looked at as the
        condition is made.
        """
        with named_in("condition"):
            self.condition.check(data.validation)
        if self.tokens_from.tokens:
            open_tokens(self.run_config, self.name, data.train)

    def training_batches(
        self,
        data: TrainingData,
        frozen: Any,
        to_devices: ToDevices,
        *,
        start_step: int,
        share: Share,
    ) -> Generator[Batch, None, None]:
        """As `Stage.training_batches`; or of tokens, see `token_batches`, where they are there.

        Raises:
            InputError: tokens that are not of this run.
        """
        tokens = self._tokens_made_before(data, frozen, to_devices, share)
        if tokens is None:
            return super().training_batches(
                data, frozen, to_devices, start_step=start_step, share=share
            )
        return token_batches(
            tokens,
            data.condition,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            start_step=start_step,
            share=share,
        )

    def train_step(
        self,
        state: State,
        frozen: Any,
        batch: Batch,
        key: Key[Array, ""],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update; there is one phase."""
        params = state.model.params

        def gradients(model_state: Any, batch: Any, rng: Key[Array, ""]) -> Any:
            # Here, and not of the whole batch, so that microbatches bound the memory of it too.
            tokens = self._tokens(frozen, batch)
            keys = split_by_name(rng, self.model.rngs)

            def loss_fn(params: Any) -> Any:
                loss, weight, metrics = self.model.apply(
                    {"params": params, **model_state},
                    tokens,
                    batch["condition"],
                    train=True,
                    method="loss",
                    rngs=keys,
                )
                return loss, (weight, metrics)

            (loss, (weight, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            return grads, model_state, {"loss": loss, **metrics}, weight

        rng = jax.random.fold_in(key, state.step)
        grads, model_state, metrics = accumulate(
            gradients, state.model.model_state, batch, rng, self.settings.microbatches
        )
        model, update_metrics = self.update(state.model, grads, model_state, state.step)
        return State(state.step + 1, model), {**metrics, **update_metrics}

    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Batch], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """The prior's held-out metrics beside the unigram entropy of the same codes; samples."""
        sums: Any = None
        variables = {"params": state.model.weights, **state.model.model_state}
        for i, batch in enumerate(batches):
            part = to_devices({name: batch[name] for name in ("image", "condition", "valid")})
            key = random_key(self.seed, f"{self.name}/evaluate", i)
            batch_sums = self.eval_step(variables, frozen, part, key)
            sums = batch_sums if sums is None else jax.tree.map(jnp.add, sums, batch_sums)
            if self.frechet and self.frechet.wants_more:
                for part in self._parts(batch):
                    images, condition, valid = to_devices(part)
                    key = random_key(self.seed, f"{self.name}/frechet", self.frechet.batches)
                    made = self.decode(frozen, self._draw(variables, key, condition))
                    self.frechet.add(to_float(images), made, to_host(valid))
        counts, held_out = jax.tree.map(to_host, sums)
        metrics = {name: float(total / count) for name, (total, count) in held_out.items()}
        perplexity = quantizers.perplexity(jnp.asarray(counts))
        metrics["unigram_entropy"] = math.log(float(perplexity))
        if self.frechet:
            metrics |= self.frechet.distance()
        return metrics, {"samples": image_grid(self._samples(variables, frozen), columns=6)}

    def _eval_step(
        self, variables: Any, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "k"], Any]:
        """Counts of the valid images' codes, and the prior's sums over them."""
        tokens = self._encode(frozen, batch["image"])
        counted = batch["valid"][:, None] & tokens.present
        counts = quantizers.count_codes(tokens.codes, self.model.num_codes, counted)
        held_out = self.model.apply(
            variables, tokens, batch["condition"], batch["valid"], key, method="held_out"
        )
        return counts, held_out

    def _samples(self, variables: Any, frozen: Any) -> Float[Any, "n H W 3"]:
        """Images drawn with the same key at every evaluation, to be compared."""
        condition = self.condition.in_turn(min(SAMPLES, self.sampling.generation.batch_size))
        key = random_key(self.seed, f"{self.name}/sample", 0)
        return to_host(self.decode(frozen, self._draw(variables, key, jnp.asarray(condition))))

    def _draw(self, variables: Any, key: Key[Array, ""], condition: Int[Array, "b c"]) -> Tokens:
        """Tokens of new images under a condition."""
        sample = SAMPLERS[self.run_config[self.name].model.name].sample
        settings = self.sampling.sampler
        return sample(self.model, variables, key, condition, None, settings, self.grid)

    def _parts(self, batch: Any) -> list[tuple[Any, ...]]:
        """Images, conditions, validity of a batch, in parts no larger than are sampled at once."""
        # Of each process's rows; every device keeps at least one of each part.
        rows = len(batch["image"])
        batch_size, most_drawn = self.settings.batch_size, self.sampling.generation.batch_size
        most = max(batch_size // jax.device_count(), 1)
        parts = next(
            n
            for n in range(1, most + 1)
            if n == most or (most % n == 0 and batch_size <= n * most_drawn)
        )
        if rows % parts:
            parts = 1
        split = (np.split(batch[key], parts) for key in ("image", "condition", "valid"))
        return list(zip(*split, strict=True))

    def _tokens_made_before(
        self, data: TrainingData, frozen: Any, to_devices: ToDevices, share: Share
    ) -> TokenSet | None:
        """Tokens of the training set, from disk or made now; None where each step makes its own."""
        if self.tokens_from.tokens:
            _, encoder = split_decoder(self.tokenizer, frozen)
            return open_tokens(self.run_config, self.name, data.train, encoder)
        settings, source = self.settings, data.train
        form = token_form(self.tokenizer, self.resolution, enumerated_views(data.settings) or 1)
        seen = settings.steps * settings.batch_size
        if not fits_memory(source, data.settings, form, self.tokens_from.in_memory, seen):
            return None
        return tokens_in_memory(
            source,
            data.settings,
            form,
            lambda images: self.encode_in_parts(frozen, to_devices(images)),
            lambda rows: jax.tree.map(to_host, to_devices(rows)),
            batch_size=settings.batch_size,
            share=share,
        )

    def _tokens(self, frozen: Any, batch: Batch) -> Tokens:
        """The tokens of a batch, whatever it has of them."""
        if "image" in batch:
            return self._encode(frozen, batch["image"])
        if "positions" in batch:
            return Tokens(batch["codes"], batch["positions"], self.grid)
        return Tokens.dense(batch["codes"].reshape(-1, *self.grid))

    def _encode_in_parts(self, frozen: Any, images: UInt8[Array, "b H W 3"]) -> Tokens:
        """Tokens of a batch, in microbatches as they are trained on."""
        parts = einops.rearrange(images, "(b n) ... -> n b ...", n=self.settings.microbatches)
        tokens = jax.lax.map(lambda part: self._encode(frozen, part), parts)
        return jax.tree.map(lambda x: einops.rearrange(x, "n b ... -> (b n) ..."), tokens)

    def _encode(self, frozen: Any, images: UInt8[Array, "b H W 3"]) -> Tokens:
        return self.tokenizer.apply(frozen, to_float(images), method="encode")

    def _decode(self, frozen: Any, tokens: Tokens) -> Float[Array, "b H W 3"]:
        tile = self.sampling.generation.decode_tile
        images = self.tokenizer.apply(frozen, tokens, tile, method="decode")
        return jnp.clip(images, -1.0, 1.0)
