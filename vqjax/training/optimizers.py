"""Learning-rate schedules, optimizers, averaged weights, and gradients over microbatches."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from vqjax import registry
from vqjax.errors import FieldError, InputError
from vqjax.parallel import leaf_path
from vqjax.settings import Range, check_settings, setting

# Dense, convolution and nn.Embed matrices. By name, as under a scan over layers a bias has two axes
# too.
DECAYED = ("kernel", "embedding")

Metrics: TypeAlias = dict[str, Float[Array, ""]]
# (model state, batch, rng) -> (gradients, new model state, metrics, weight)
GradFn: TypeAlias = Callable[
    [PyTree, PyTree, Key[Array, ""]], tuple[PyTree, PyTree, Metrics, Float[Array, ""]]
]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Adam or AdamW, with clipping by the global norm, and its learning rate.

    The rate grows linearly from 0 over the warm-up, stays at the peak for `hold_steps`, and then
    decays until the last step, where `end_factor` of the peak is left (not for "constant"). Weight
    decay is decoupled, on the parameters of `decay_mask` only.

    Raises:
        FieldError: a value out of its range, or values that contradict each other.
    """

    name: Literal["adam", "adamw"] = setting("adam", "the optimizer")
    learning_rate: float = setting(1e-4, "the peak", Range(0, above=True))
    b1: float = setting(0.9, "decay of the first moment", Range(0, 1, below=True))
    b2: float = setting(0.999, "decay of the second moment", Range(0, 1, below=True))
    eps: float = setting(1e-8, "added to the root of the second moment", Range(0, above=True))
    weight_decay: float = setting(0.0, "of adamw", Range(0))
    clip_norm: float | None = setting(
        None,
        "gradients of a larger norm are scaled to it; None for no clipping",
        Range(0, above=True),
    )
    schedule: Literal["cosine", "linear", "exponential", "constant"] = setting(
        "cosine", "of the learning rate after the warm-up"
    )
    warmup_steps: int = setting(0, "steps until the peak", Range(0))
    hold_steps: int = setting(0, "steps at the peak before the decay", Range(0))
    end_factor: float = setting(0.0, "part of the peak that is left at the end", Range(0, 1))

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_settings(self)
        if self.schedule == "exponential" and self.end_factor == 0:
            raise FieldError("end_factor=0.0: above 0 is needed for the exponential schedule")
        if self.name == "adam" and self.weight_decay:
            raise FieldError(
                f"weight_decay={self.weight_decay}: adam has none; use adamw, or weight_decay=0"
            )


def make_schedule(settings: OptimizerSettings, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up from 0, the peak, then a decay.

    Args:
        settings: of the optimizer.
        total_steps: of the stage, warm-up included; the rate stays at its end value afterwards.

    Raises:
        FieldError: warm-up and peak as long as the stage.
    """
    peak, end_factor = settings.learning_rate, settings.end_factor
    warmup, hold = settings.warmup_steps, settings.hold_steps
    if warmup >= total_steps:
        raise FieldError(
            f"warmup_steps={warmup}: less than the {total_steps} steps of the stage is needed"
        )
    steps = total_steps - warmup - hold
    if steps <= 0:
        raise FieldError(
            f"hold_steps={hold}: less than the {total_steps - warmup} steps of the stage after the"
            " warm-up is needed"
        )
    if settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps, alpha=end_factor)
    elif settings.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * end_factor, steps)
    elif settings.schedule == "exponential":
        decay = optax.exponential_decay(peak, steps, end_factor, end_value=peak * end_factor)
    else:
        decay = optax.constant_schedule(peak)
    before = [(warmup, optax.linear_schedule(0.0, peak, warmup))] if warmup else []
    before += [(warmup + hold, optax.constant_schedule(peak))] if hold else []
    ends, schedules = [end for end, _ in before], [schedule for _, schedule in before]
    return optax.join_schedules([*schedules, decay], ends)


def make_optimizer(
    part: str, config: ConfigDict, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimizer, and the schedule it follows.

    Args:
        part: path of its sub-config, for messages ("prior.optimizer").
        config: the fields of `OptimizerSettings`.
        total_steps: of the stage.

    Raises:
        InputError: an unknown field, or as `OptimizerSettings` and `make_schedule`.
    """
    settings = registry.from_fields(part, OptimizerSettings, config)
    with registry.named_in(part):
        schedule = make_schedule(settings, total_steps)
    moments = {"b1": settings.b1, "b2": settings.b2, "eps": settings.eps}
    if settings.name == "adam":
        optimizer = optax.adam(schedule, **moments)
    else:
        optimizer = optax.adamw(
            schedule, **moments, weight_decay=settings.weight_decay, mask=decay_mask
        )
    # Neither has a state, so that a run can go on with another clip_norm.
    clip = (
        optax.identity()
        if settings.clip_norm is None
        else optax.clip_by_global_norm(settings.clip_norm)
    )
    return optax.chain(clip, optimizer), schedule


def decay_mask(params: PyTree) -> PyTree[bool]:
    """True for the parameters that weight decay pulls on: those named "kernel" or "embedding".

    Biases, norms, position tables, learned tokens and codebooks keep their size.
    """
    return jax.tree.map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in DECAYED, params
    )


def ema_update(
    ema: PyTree[Float[Array, "..."]],
    params: PyTree[Float[Array, "..."]],
    decay: float,
    step: Int[Array, ""],
) -> PyTree[Float[Array, "..."]]:
    """One step of the exponential moving average of the weights.

    Args:
        ema: the average so far.
        params: the weights after this step's update.
        decay: in [0, 1); the first steps use (1 + step) / (10 + step) where that is less, so that
            the initial weights are forgotten (the rule of TensorFlow's ExponentialMovingAverage).
        step: updates before this one, from 0.
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, 1 - keep)


def set_rows(
    params: PyTree, path: str, rows: Bool[Array, "k"], vectors: Float[Array, "k ..."]
) -> PyTree:
    """Parameters with some rows of one of them replaced.

    Args:
        params: all of them.
        path: of the one ("quantizer/codebook").
        rows: along its first axis, which.
        vectors: new values of the one; the other rows don't count.

    Raises:
        KeyError: there is no such parameter.
    """
    if path not in {leaf_path(at) for at, _ in jax.tree.leaves_with_path(params)}:
        raise KeyError(path)
    return jax.tree.map_with_path(
        lambda at, leaf: _where_rows(rows, vectors, leaf) if leaf_path(at) == path else leaf, params
    )


def forget_rows(opt_state: PyTree, path: str, rows: Bool[Array, "k"]) -> PyTree:
    """An optimizer's state in which rows of a parameter have no past: their moments are zero.

    The number of steps that Adam's bias correction takes is one for all rows: the first updates of
    those rows are up to (1 - b1) / sqrt(1 - b2) times the learning rate.

    Args:
        opt_state: of any optimizer of optax whose state holds trees as the parameters are.
        path: of the parameter ("quantizer/codebook"), in which that of no other may end.
        rows: along its first axis, which.
    """
    return jax.tree.map_with_path(
        lambda at, leaf: (
            _where_rows(rows, jnp.zeros_like(leaf), leaf)
            if leaf_path(at).endswith(f"/{path}")
            else leaf
        ),
        opt_state,
    )


def _where_rows(rows: Bool[Array, "k"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def accumulate(
    grad_fn: GradFn,
    model_state: PyTree,
    batch: PyTree[Array],
    rng: Key[Array, ""],
    microbatches: int,
) -> tuple[PyTree, PyTree, Metrics]:
    """Gradients and metrics of a whole batch, computed in microbatches one after the other.

    The weight is what a microbatch's mean was taken over (predicted tokens, images): weighting by
    it makes the sum of the parts the gradient of the mean over the whole batch. One microbatch is a
    plain call with `rng` itself.

    Args:
        grad_fn: (model_state, batch, rng) -> (gradients, new model_state, metrics, weight), where
            gradients and metrics are means over the batch, and weight says over how many terms.
        model_state: threaded through the microbatches.
        batch: leaves with the batch in front. Microbatch i takes rows i, i + n, i + 2n ..., so that
            every device of a sharded batch splits its own rows.
        rng: folded with the index of the microbatch.
        microbatches: their number n; divides the batch.

    Raises:
        InputError: the batch does not divide.
    """
    if microbatches == 1:
        grads, model_state, metrics, _ = grad_fn(model_state, batch, rng)
        return grads, model_state, metrics
    size = len(jax.tree.leaves(batch)[0])
    if microbatches < 1 or size % microbatches:
        raise InputError(
            f"a batch of {size} does not divide into {microbatches} microbatches: "
            "change one of the two"
        )
    split = jax.tree.map(
        lambda x: einops.rearrange(x, "(b n) ... -> n b ...", n=microbatches), batch
    )

    def step(carry: Any, indexed: Any) -> tuple[Any, None]:
        index, microbatch = indexed
        model_state, total, total_weight = carry
        grads, model_state, metrics, weight = grad_fn(
            model_state, microbatch, jax.random.fold_in(rng, index)
        )
        total = jax.tree.map(lambda t, x: t + weight * x, total, (grads, metrics))
        return (model_state, total, total_weight + weight), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(grad_fn, model_state, first, rng)
    zeros = optax.tree.zeros_like((shapes[0], shapes[2]))
    carry = (model_state, zeros, jnp.zeros((), shapes[3].dtype))
    (model_state, total, weight), _ = jax.lax.scan(step, carry, (jnp.arange(microbatches), split))
    grads, metrics = jax.tree.map(lambda t: t / weight, total)
    return grads, model_state, metrics
