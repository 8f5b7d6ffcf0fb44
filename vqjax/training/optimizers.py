"""Learning-rate schedules, optimizers, averaged weights, and gradients over microbatches."""

from collections.abc import Callable
from typing import Any, TypeAlias

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.registry import did_you_mean

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("cosine", "linear", "exponential", "constant")

# Dense, convolution and nn.Embed matrices. By name, as under a scan over layers a bias has two axes
# too.
DECAYED = ("kernel", "embedding")

Metrics: TypeAlias = dict[str, Float[Array, ""]]
GradFn: TypeAlias = Callable[
    [PyTree, PyTree, PyTree, Key[Array, ""]], tuple[PyTree, PyTree, Metrics, Float[Array, ""]]
]


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up from 0, then a decay.

    Args:
        config: learning_rate (the peak), warmup_steps, schedule ("cosine", "linear", "exponential"
            or "constant") and end_factor (what is left of the peak at `total_steps`; not for
            "constant").
        total_steps: of the stage, warm-up included; the rate stays at its end value afterwards.

    Raises:
        InputError: unknown schedule, a warm-up as long as the stage, or an end_factor that the
            schedule cannot reach.
    """
    peak, end_factor, warmup = config.learning_rate, config.end_factor, config.warmup_steps
    if config.schedule not in SCHEDULES:
        raise InputError(
            f"schedule={config.schedule!r}: {did_you_mean(str(config.schedule), SCHEDULES)}"
        )
    if not 0 <= warmup < total_steps:
        raise InputError(
            f"warmup_steps={warmup}: expected at least 0 and less than the {total_steps} steps "
            "of the stage"
        )
    if not 0 <= end_factor <= 1 or (config.schedule == "exponential" and end_factor == 0):
        raise InputError(
            f"end_factor={end_factor}: expected [0, 1], above 0 for the exponential schedule"
        )

    steps = total_steps - warmup
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps, alpha=end_factor)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * end_factor, steps)
    elif config.schedule == "exponential":
        decay = optax.exponential_decay(peak, steps, end_factor, end_value=peak * end_factor)
    else:
        decay = optax.constant_schedule(peak)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(
    config: ConfigDict, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Adam or AdamW with clipping by global norm, and the schedule it follows.

    Args:
        config: name ("adam" or "adamw"), b1, b2, eps, weight_decay (decoupled, on `decay_mask`
            only; 0 for adam), clip_norm (None: off) and the fields of `make_schedule`.
        total_steps: of the stage.

    Raises:
        InputError: unknown optimizer, adam with weight decay, a clip_norm of 0 or less, or as
            `make_schedule`.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(
            f"optimizer name={config.name!r}: {did_you_mean(str(config.name), OPTIMIZERS)}"
        )
    if config.name == "adam" and config.weight_decay:
        raise InputError(
            f"weight_decay={config.weight_decay}: adam has none; use adamw, or weight_decay=0"
        )
    if config.clip_norm is not None and config.clip_norm <= 0:
        raise InputError(
            f"clip_norm={config.clip_norm}: expected a norm above 0, or None for no clipping"
        )
    schedule = make_schedule(config, total_steps)
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adam":
        optimizer = optax.adam(schedule, **moments)
    else:
        optimizer = optax.adamw(
            schedule, **moments, weight_decay=config.weight_decay, mask=decay_mask
        )
    # Neither has a state, so that a run can go on with another clip_norm.
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
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


def accumulate(
    grad_fn: GradFn,
    params: PyTree,
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
        grad_fn: (params, model_state, batch, rng) -> (gradients, new model_state, metrics, weight),
            where gradients and metrics are means over the batch, and weight says over how many
            terms.
        params: passed on.
        model_state: threaded through the microbatches.
        batch: leaves with the batch in front. Microbatch i takes rows i, i + n, i + 2n ..., so that
            every device of a sharded batch splits its own rows.
        rng: folded with the index of the microbatch.
        microbatches: their number n; divides the batch.

    Raises:
        InputError: the batch does not divide.
    """
    if microbatches == 1:
        grads, model_state, metrics, _ = grad_fn(params, model_state, batch, rng)
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
            params, model_state, microbatch, jax.random.fold_in(rng, index)
        )
        total = jax.tree.map(lambda t, x: t + weight * x, total, (grads, metrics))
        return (model_state, total, total_weight + weight), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(grad_fn, params, model_state, first, rng)
    zeros = optax.tree.zeros_like((shapes[0], shapes[2]))
    carry = (model_state, zeros, jnp.zeros((), shapes[3].dtype))
    (model_state, total, weight), _ = jax.lax.scan(step, carry, (jnp.arange(microbatches), split))
    grads, metrics = jax.tree.map(lambda t: t / weight, total)
    return grads, model_state, metrics
