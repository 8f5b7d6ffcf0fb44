"""The contract of a stage: its settings, and what the training loop asks of it."""

import abc
import dataclasses
import logging
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.conditions import Condition, NoCondition
from vqjax.data import DataSettings, Share, Source, train_batches
from vqjax.errors import InputError
from vqjax.random_keys import purpose_key
from vqjax.runs.stages import (
    TrainedStage,
    is_to_start,
    model_differences,
    source_of_start,
    stage_settings,
)
from vqjax.runs.workdir import read_condition
from vqjax.training.frechet_monitor import FrechetSettings
from vqjax.training.optimizers import ema_update, make_optimizer
from vqjax.training.start import (
    Rule,
    Start,
    codebook_rule,
    condition_rule,
    plan_start,
    position_rule,
)
from vqjax.training.state import Network, State

log = logging.getLogger(__name__)

Metrics = dict[str, Float[Array, ""]]
Pictures = dict[str, UInt8[np.ndarray, "h w 3"]]
# Arrays of a batch by name, as `vqjax.data` delivers them.
Batch = Mapping[str, Any]
ToDevices = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        settings: how they are read.
        train: images to train on.
        validation: images to evaluate on.
        condition: told of each image beside its pixels.
    """

    settings: DataSettings
    train: Source
    validation: Source
    condition: Condition


class Stage(abc.ABC):
    """One stage of training.

    Attributes:
        name: its key in the config and its folder in the workdir.
        run_config: of the whole run.
        workdir: folder of the run.
        settings: that every kind has.
        frechet_settings: of the Frechet distance at every evaluation.
        seed: of the run.
        optimizer: optax transformation.
        schedule: learning rate of a step.
        condition: that a prior is told; none for the other kinds.
    """

    condition: Condition = NoCondition()

    def __init__(self, name: str, config: ConfigDict, workdir: epath.Path):
        """Takes the stage's name, the run's config and its folder.

        Raises:
            InputError: an unknown setting, or one out of its range.
        """
        self.name = name
        self.run_config = config
        self.workdir = workdir
        self.seed = config.seed
        own = config[name]
        self.settings = stage_settings(name, own)
        self.frechet_settings = registry.from_fields(
            f"{name}.frechet", FrechetSettings, own.frechet
        )
        self._check_best_metric()
        self.optimizer, self.schedule = make_optimizer(
            f"{name}.optimizer", own.optimizer, self.settings.steps
        )

    @abc.abstractmethod
    def init_variables(self, key: Key[Array, ""]) -> Any:
        """Fresh variables of what is trained; "params" among the collections."""

    @abc.abstractmethod
    def frozen_shapes(self) -> Any:
        """Shapes of `load_frozen`."""

    @abc.abstractmethod
    def load_frozen(self, shapes: Any) -> Any:
        """The arrays that the steps need and don't train: frozen nets, earlier stages' weights.

        Args:
            shapes: `frozen_shapes` with a sharding at every leaf.

        Raises:
            InputError: they cannot be found.
        """

    @abc.abstractmethod
    def train_step(
        self,
        state: State,
        frozen: Any,
        batch: Batch,
        key: Key[Array, ""],
        phase: int | None = None,
    ) -> tuple[State, Metrics]:
        """One update, and the metrics of its batch; pure.

        Args:
            state: before the step.
            frozen: of `load_frozen`.
            batch: of `training_batches`, as global arrays.
            key: `training_key`; as an argument, so that a program serves every seed.
            phase: of `phase`; None for the last one.
        """

    @abc.abstractmethod
    def evaluate(
        self, state: State, frozen: Any, batches: Iterable[Batch], to_devices: ToDevices
    ) -> tuple[dict[str, float], Pictures]:
        """Metrics over all validation batches, and picture grids.

        Args:
            state: after some step.
            frozen: of `load_frozen`.
            batches: of this process, of `vqjax.data.evaluation_batches`.
            to_devices: makes global arrays on the devices of a tree of them.
        """

    def between_steps(
        self,
        state: State,
        step: int,
        data: TrainingData,
        frozen: Any,
        to_devices: ToDevices,
        share: Share,
    ) -> tuple[State, dict[str, float]]:
        """What is done to the state between two steps: a function of it and of `step`; nothing.

        It belongs to the step that follows: a checkpoint of `step` has the state before it, and
        after the last step there is none.

        Args:
            state: after `step` steps.
            step: finished ones.
            data: of the run.
            frozen: of `load_frozen`.
            to_devices: makes global arrays on the devices of a tree of this process's rows.
            share: of this process.

        Returns:
            The state that the next step takes, and more metrics of that step.
        """
        del step, data, frozen, to_devices, share
        return state, {}

    def check_data(self, data: TrainingData) -> None:
        """Checks, before any stage of the run begins, what this one takes from the data.

        Raises:
            InputError: it is not there, or not of this run.
        """
        del data

    def training_batches(
        self,
        data: TrainingData,
        frozen: Any,
        to_devices: ToDevices,
        *,
        start_step: int,
        share: Share,
    ) -> Generator[Batch, None, None]:
        """Endless batches of this process: of each step the same ones, wherever training starts.

        Args:
            data: of the run.
            frozen: of `load_frozen`.
            to_devices: makes global arrays on the devices of a tree of this process's rows.
            start_step: step of the first batch.
            share: of this process.

        Yields:
            "image", uint8 [b, H, W, 3], and "condition", int32 [b, c].

        Raises:
            InputError: arguments out of range; from the iterator, a broken image.
        """
        del frozen, to_devices
        return train_batches(
            data.train,
            data.condition,
            data.settings,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            start_step=start_step,
            share=share,
        )

    def source_of_start(self) -> TrainedStage | None:
        """The stage whose weights this one starts from: that of `init_from`; None for none.

        Raises:
            InputError: there is no such stage, or it is of another kind of model.
        """
        return source_of_start(self.run_config, self.name) if self.settings.init_from else None

    def check_start(self, variables: Any) -> None:
        """Checks before any stage is trained that this one can start from what `init_from` names.

        Args:
            variables: shapes of `init_variables`.

        Raises:
            InputError: it cannot.
        """
        if self.settings.init_from and is_to_start(self.workdir, self.name):
            self._plan_start(variables)

    def load_start(self, fresh: Any) -> Any:
        """The variables before the first step: fresh ones, or what is taken of trained ones.

        Logs what is taken and what is not.

        Args:
            fresh: variables of `init_variables`, on a mesh.

        Raises:
            InputError: as `source_of_start`; nothing of the source fits.
        """
        start = self._plan_start(fresh)
        if start is None:
            return fresh
        differing = model_differences(start.source, self.run_config[self.name])
        if differing:
            log.info("%s: another model than its source: %s", self.name, "; ".join(differing))
        for line in start.lines():
            log.info("%s: %s", self.name, line)
        return start.load(fresh)

    def _plan_start(self, variables: Any) -> Start | None:
        source = self.source_of_start()
        if source is None:
            return None
        rules: list[Rule] = [codebook_rule, position_rule]
        if source.settings.kind == "prior":
            rules.append(condition_rule(self.condition, read_condition(source.folder.parent)))
        return plan_start(source, variables, rules, self.name)

    @property
    def training_key(self) -> Key[Array, ""]:
        """The key into which each training step folds its number."""
        return purpose_key(self.seed, f"{self.name}/train")

    def phase(self, step: int) -> int:
        """The phase of training after `step` steps, from 0; each has a program of its own."""
        del step
        return 0

    def init(self, key: Key[Array, ""]) -> State:
        """The state before the first step."""
        network = new_network(
            self.init_variables(key), self.optimizer, bool(self.settings.ema_decay)
        )
        return State(jnp.zeros((), jnp.int32), network)

    def update(
        self, network: Network, grads: Any, model_state: Any, step: Int[Array, ""]
    ) -> tuple[Network, Metrics]:
        """Applies a gradient to the model, and moves its average."""
        network = apply_gradient(network, grads, model_state, self.optimizer)
        if network.ema is not None:
            ema = ema_update(network.ema, network.params, self.settings.ema_decay, step)
            network = dataclasses.replace(network, ema=ema)
        return network, {
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(self.schedule(step), jnp.float32),
        }

    def _check_best_metric(self) -> None:
        """Raises InputError if the best checkpoint is to be chosen by a distance that is not taken.

        Of the other metrics nobody knows before the first evaluation.
        """
        settings = self.settings
        if re.search("FI?D", settings.best_metric):
            if not self.frechet_settings.images:
                raise InputError(
                    f"config.{self.name}.best_metric={settings.best_metric}: this distance is not"
                    f" taken; set config.{self.name}.frechet.images, for example to 2048"
                )
            if settings.best_mode != "min":
                raise InputError(
                    f"config.{self.name}.best_mode={settings.best_mode}: the best"
                    f" {settings.best_metric} is the smallest; set min"
                )


def new_network(variables: Any, optimizer: optax.GradientTransformation, average: bool) -> Network:
    """A network that has not been trained; `average`: keep a moving average of its parameters."""
    model_state = dict(variables)
    params = model_state.pop("params")
    ema = jax.tree.map(jnp.copy, params) if average else None
    return Network(params, optimizer.init(params), ema, model_state)


def apply_gradient(
    network: Network, grads: Any, model_state: Any, optimizer: optax.GradientTransformation
) -> Network:
    """A network after one step of its optimizer, with its new model state and its old average."""
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    params = optax.apply_updates(network.params, updates)
    return Network(params, opt_state, network.ema, model_state)


def started_from(state: State, variables: Mapping[str, Any]) -> State:
    """A state whose model begins with given variables, {"params": ..., **collections}."""
    model_state = dict(variables)
    params = model_state.pop("params")
    # No leaf of the state shares its memory with another.
    ema = None if state.model.ema is None else jax.tree.map(jnp.copy, params)
    model = dataclasses.replace(state.model, params=params, ema=ema, model_state=model_state)
    return dataclasses.replace(state, model=model)
