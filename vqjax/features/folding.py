"""BatchNorms of trained PyTorch networks, folded into the convolutions before them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from vqjax.features.weight_files import check_shapes

# Of a layer, by its path in our parameters: what the state dict calls it, and its BatchNorm; a
# linear layer has none.
Names = Callable[[tuple[str, ...]], tuple[str, str | None]]

_NORM = ("weight", "bias", "running_mean", "running_var")


def affine(
    state: Mapping[str, Any], norm: str, epsilon: float
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Scale and shift of each channel that a trained BatchNorm amounts to, in float64.

    Args:
        state: name -> array.
        norm: the BatchNorm's name.
        epsilon: of it.
    """
    weight, shift, mean, variance = (state[f"{norm}.{name}"].astype(np.float64) for name in _NORM)
    scale = weight / np.sqrt(variance + epsilon)
    return scale, shift - mean * scale


def fold(
    state: Mapping[str, Any],
    expected: Mapping[str, Any],
    names: Names,
    epsilon: float,
    source: str,
) -> dict[str, Any]:
    """A network's parameters from the state dict of its PyTorch original.

    Args:
        state: convolutions without a bias, the BatchNorms that follow them, linear layers with a
            bias. How many batches a BatchNorm has seen is not read.
        expected: shapes of the parameters: of each layer "kernel" (HWIO; a matrix, in x out, of a
            linear one) and, where it is added, "bias".
        names: see `Names`.
        epsilon: of the BatchNorms.
        source: file that the state dict is from, for the message.

    Raises:
        InputError: names the first array that is missing, not expected, or of another shape.
    """
    shapes = flatten_dict(expected)
    layers = {path[:-1]: leaf.shape for path, leaf in shapes.items() if path[-1] == "kernel"}
    wanted: dict[str, jax.ShapeDtypeStruct] = {}
    for path, (*size, inputs, outputs) in layers.items():
        layer, norm = names(path)
        weight = jax.ShapeDtypeStruct((outputs, inputs, *size), np.float32)
        vector = jax.ShapeDtypeStruct((outputs,), np.float32)
        wanted[f"{layer}.weight"] = weight
        vectors = [f"{norm}.{name}" for name in _NORM] if norm else [f"{layer}.bias"]
        wanted |= dict.fromkeys(vectors, vector)
    read = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
    check_shapes(read, wanted, source)

    params: dict[tuple[str, ...], np.ndarray] = {}
    for path in layers:
        layer, norm = names(path)
        # OIHW to HWIO, and out x in to in x out.
        kernel = np.moveaxis(state[f"{layer}.weight"], (1, 0), (-2, -1))
        if norm is None:
            bias = state[f"{layer}.bias"]
        else:
            scale, bias = affine(state, norm, epsilon)
            kernel = kernel * scale
        params[*path, "kernel"] = np.ascontiguousarray(kernel, np.float32)
        if (*path, "bias") in shapes:
            params[*path, "bias"] = bias.astype(np.float32)
    return unflatten_dict(params)
