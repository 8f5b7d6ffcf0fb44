"""The state of a training run."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class Network:
    """A network that is trained, with its optimizer.

    Attributes:
        params: parameters that are trained, float32.
        opt_state: optax state.
        ema: moving average of the parameters, or None where none is kept.
        model_state: the model's other collections (codebook statistics).
    """

    params: Any
    opt_state: Any
    ema: Any
    model_state: Any

    @property
    def weights(self) -> Any:
        """The parameters to evaluate and sample with: the moving average where there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def variables(self) -> dict[str, Any]:
        """What is trained, not averaged: {"params": ..., **collections}."""
        return {"params": self.params, **self.model_state}


@flax.struct.dataclass
class State:
    """Everything that a checkpoint holds.

    Attributes:
        step: finished training steps, int32.
        model: the stage's model: what of it is trained.
        discriminator: its adversary, or None.
    """

    step: Any
    model: Network
    # Any, as JAX builds states with placeholders in them.
    discriminator: Any = None
