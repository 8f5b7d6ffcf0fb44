"""The state of a training run, and where its random numbers come from."""

import zlib
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Int, Key


@flax.struct.dataclass
class Player:
    """One network that is trained, and its optimizer.

    Attributes:
        params: parameters, float32.
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
        """`weights` and model state as `apply` takes them."""
        return {"params": self.weights, **self.model_state}


@flax.struct.dataclass
class State:
    """Everything that a checkpoint holds.

    Attributes:
        step: finished training steps, int32.
        generator: the tokenizer or the prior.
        discriminator: its adversary, or None.
    """

    step: Any
    generator: Player
    # Any, as JAX builds states with placeholders in them.
    discriminator: Any = None


def random_key(seed: int, purpose: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The random key of a purpose at a step; of nothing else, so that a resumed run repeats it."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)
