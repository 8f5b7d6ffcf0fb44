"""What the training loop asks of a stage: the tokenizer's, the prior's."""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.training.optimizers import ema_update, make_optimizer
from vqjax.training.state import Player, State

Metrics = dict[str, Float[Array, ""]]
Pictures = dict[str, UInt8[np.ndarray, "h w 3"]]
# Puts a process-local batch of numpy arrays on the devices as a global one.
ToDevices = Callable[[Any], Any]


class Stage(abc.ABC):
    """One stage of training.

    Attributes:
        name: its key in the config and its folder in the workdir.
        config: `config.<name>`.
        seed: of the run.
        optimizer: optax transformation.
        schedule: learning rate of a step.
    """

    def __init__(self, name: str, config: ConfigDict, seed: int):
        """Takes the stage's sub-config and the run's seed.

        Raises:
            InputError: a setting out of its range.
        """
        self.name = name
        self.config = config
        self.seed = seed
        _check(name, config)
        self.optimizer, self.schedule = make_optimizer(config.optimizer, config.steps)

    @abc.abstractmethod
    def init_variables(self, key: Key[Array, ""]) -> Any:
        """The model's variables; "params" among the collections."""

    @abc.abstractmethod
    def frozen_shapes(self) -> Any:
        """Shapes of what `load_frozen` gives."""

    @abc.abstractmethod
    def load_frozen(self, shapes: Any) -> Any:
        """What the steps need and don't train: a perceptual net, an earlier stage's weights.

        Args:
            shapes: `frozen_shapes` with a sharding at every leaf.

        Raises:
            InputError: it cannot be found.
        """

    @abc.abstractmethod
    def train_step(
        self,
        state: State,
        frozen: Any,
        images: UInt8[Array, "b H W 3"],
        labels: Int[Array, "b"],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update, and the metrics of its batch; pure. `phase`: None for the last one."""

    @abc.abstractmethod
    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Any], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """Metrics over all validation batches, and picture grids."""

    def phase(self, step: int) -> int:
        """The phase of training after `step` steps, from 0; each has a program of its own."""
        del step
        return 0

    def init(self, key: Key[Array, ""]) -> State:
        """The state before the first step."""
        player = new_player(self.init_variables(key), self.optimizer, bool(self.config.ema_decay))
        return State(jnp.zeros((), jnp.int32), player)

    def update(
        self, player: Player, grads: Any, model_state: Any, step: Int[Array, ""]
    ) -> tuple[Player, Metrics]:
        """Applies a gradient to the generator, and moves its average."""
        player = apply_gradient(player, grads, model_state, self.optimizer)
        if player.ema is not None:
            ema = ema_update(player.ema, player.params, self.config.ema_decay, step)
            player = dataclasses.replace(player, ema=ema)
        return player, {
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(self.schedule(step), jnp.float32),
        }


def new_player(variables: Any, optimizer: optax.GradientTransformation, average: bool) -> Player:
    """A player that has not been trained; `average`: keep a moving average of its parameters."""
    model_state = dict(variables)
    params = model_state.pop("params")
    ema = jax.tree.map(jnp.copy, params) if average else None
    return Player(params, optimizer.init(params), ema, model_state)


def apply_gradient(
    player: Player, grads: Any, model_state: Any, optimizer: optax.GradientTransformation
) -> Player:
    """A player after one step of its optimizer, with its new model state and its old average."""
    updates, opt_state = optimizer.update(grads, player.opt_state, player.params)
    params = optax.apply_updates(player.params, updates)
    return Player(params, opt_state, player.ema, model_state)


def _check(name: str, config: ConfigDict) -> None:
    """Raises InputError for the first setting out of its range."""
    for key in (
        *("batch_size", "microbatches", "steps", "log_every", "eval_every", "eval_images"),
        *("checkpoint_every", "keep_checkpoints"),
    ):
        if config[key] < 1:
            raise InputError(f"config.{name}.{key}={config[key]}: at least 1 is needed")
    if config.batch_size % config.microbatches:
        raise InputError(
            f"config.{name}.batch_size={config.batch_size} does not divide into"
            f" microbatches={config.microbatches}: change one of the two"
        )
    if not 0 <= config.ema_decay < 1:
        raise InputError(
            f"config.{name}.ema_decay={config.ema_decay}: expected [0, 1), 0 for no average"
        )
    for key, valid in (("use", ("last", "best")), ("best_mode", ("min", "max"))):
        if config[key] not in valid:
            raise InputError(f"config.{name}.{key}={config[key]!r}: valid: {', '.join(valid)}")
    if re.search("FI?D", config.best_metric):
        if not config.frechet.images:
            raise InputError(
                f"config.{name}.best_metric={config.best_metric}: this distance is not taken; set"
                f" config.{name}.frechet.images, for example to 2048"
            )
        if config.best_mode != "min":
            raise InputError(
                f"config.{name}.best_mode={config.best_mode}: the best {config.best_metric} is the"
                " smallest; set min"
            )
