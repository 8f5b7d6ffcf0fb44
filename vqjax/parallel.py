"""The mesh, the shardings of state and batch on it, and several hosts."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from vqjax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]]

# Heads and hidden units are independent of each other, so splitting them costs one all-reduce for a
# pair of layers (Shoeybi et al. 2019, Megatron-LM, section 3).
TENSOR_RULES: Rules = (
    (r"attention/qkv/kernel$", PartitionSpec(None, None, "tensor", None)),
    (r"attention/qkv/bias$", PartitionSpec(None, "tensor", None)),
    (r"attention/out/kernel$", PartitionSpec("tensor", None, None)),
    (r"mlp/up/kernel$", PartitionSpec(None, "tensor")),
    (r"mlp/up/bias$", PartitionSpec("tensor")),
    (r"mlp/down/kernel$", PartitionSpec("tensor", None)),
)


def initialise_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Joins this process to the others of a run on several hosts, if there are to be others.

    Call it before anything touches a device. Arguments that are None are taken from the environment
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
        coordinator: "host:port" of process 0; "auto" where the platform knows it and the rest (TPU
            pods, Slurm, Open MPI).
        num_processes: how many processes there are.
        process_id: which one this is, [0, num_processes).

    Returns:
        False where nothing was asked for, and nothing was done.

    Raises:
        InputError: some are given and others missing, or they do not fit each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _from_environment("JAX_NUM_PROCESSES", num_processes)
    process_id = _from_environment("JAX_PROCESS_ID", process_id)
    if (coordinator, num_processes, process_id) == (None, None, None):
        return False

    # The default CPU client knows nothing of other processes.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator == "auto":
        jax.distributed.initialize()
        return True
    given = f"coordinator={coordinator}, num_processes={num_processes}, process_id={process_id}"
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            f"distributed run with {given}: "
            "give all three to every process, or coordinator 'auto' on a TPU pod or under Slurm"
        )
    if not 0 <= process_id < num_processes or ":" not in coordinator:
        raise InputError(
            f"distributed run with {given}: the coordinator is 'host:port' of process 0, "
            "the process ids are 0 to num_processes - 1"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return True


def make_mesh(
    sizes: Mapping[str, int] | ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices, laid out for their interconnect.

    Args:
        sizes: devices along each of "data", "fsdp" and "tensor"; a missing axis is 1, and one axis
            may be -1: as many as the others leave.
        devices: by default all devices of all processes.

    Raises:
        InputError: unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise InputError(f"mesh: unknown axis {', '.join(unknown)}; valid: {', '.join(AXES)}")
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        raise InputError(
            f"mesh {_arithmetic(shape)}: every size is at least 1, "
            "except one that may be -1 for the rest"
        )

    available = "there is 1 device" if len(devices) == 1 else f"there are {len(devices)} devices"
    if free:
        fixed = {axis: size for axis, size in shape.items() if size != -1}
        product = math.prod(fixed.values())
        if len(devices) % product:
            raise InputError(
                f"mesh {_arithmetic(fixed)} = {product}, but {available}, "
                f"which {product} does not divide: change config.mesh"
            )
        shape[free[0]] = len(devices) // product
    product = math.prod(shape.values())
    if product != len(devices):
        raise InputError(
            f"mesh {_arithmetic(shape)} = {product}, but {available}: "
            f"change config.mesh (-1 for one axis takes the rest)"
        )
    grid = mesh_utils.create_device_mesh(
        tuple(shape.values()), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device has all."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_shardings(
    abstract_state: PyTree, mesh: Mesh, rules: Rules = TENSOR_RULES, fsdp_min_size: int = 2**16
) -> PyTree[NamedSharding]:
    """Shardings for every leaf of a training state.

    A leaf whose path (keys joined by "/") matches a rule is split over "tensor" by it; what is
    large is then split over "fsdp" along its largest axis that divides and is not taken. An
    optimizer's moments and the EMA are named after their parameter and so live where it lives. Axes
    in front of those that a rule names (scanned layers) stay whole.

    Args:
        abstract_state: leaves with shapes (arrays or jax.ShapeDtypeStruct).
        mesh: of `make_mesh`.
        rules: (regex searched in the path, PartitionSpec of the trailing axes), first match wins.
            An axis that the mesh does not divide stays whole.
        fsdp_min_size: elements below which a leaf is not worth splitting over "fsdp".
    """

    def sharding(path: tuple, leaf: Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        spec, leading = _tensor_spec(leaf_path(path), leaf.shape, mesh, rules)
        if leaf.size >= fsdp_min_size:
            _split_largest_axis(spec, leaf.shape, leading, mesh.shape["fsdp"])
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map_with_path(sharding, abstract_state)


def placed(shapes: PyTree, mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes with the sharding that each leaf of a state or of variables has on a mesh."""
    shardings = state_shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def leaf_path(path: tuple) -> str:
    """A leaf's key path as text: "generator/params/decoder/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def process_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "rows"]:
    """Rows of a global batch that this process supplies to `global_batch`, ascending.

    Processes that share a row (their devices differ only along "tensor") each supply it.

    Raises:
        InputError: the batch does not divide over the mesh.
    """
    _check_batch(mesh, batch_size)
    return np.arange(batch_size).reshape(_num_shards(mesh), -1)[_local_shards(mesh)].flatten()


def global_batch(local: PyTree[np.ndarray], mesh: Mesh) -> PyTree[Array]:
    """Arrays that span all processes, from the rows that each process loaded.

    Args:
        local: leaves with this process's rows in front, those of `process_rows`.
        mesh: of `make_mesh`.

    Raises:
        InputError: the batch does not divide over the mesh.
    """
    sharding = batch_sharding(mesh)
    groups = _num_shards(mesh) // len(_local_shards(mesh))

    def to_global(rows: np.ndarray) -> Array:
        batch_size = len(rows) * groups
        _check_batch(mesh, batch_size)
        shape = (batch_size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(to_global, local)


def to_host(array: Array) -> np.ndarray:
    """The whole of an array in every process's memory, wherever its parts are.

    Every process has to call it where the array spans processes.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _tensor_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> tuple[list[str | None], int]:
    """The axes by the first matching rule, and how many leading axes the rule does not name."""
    for pattern, trailing in rules:
        leading = len(shape) - len(trailing)
        if leading >= 0 and re.search(pattern, path):
            names = [None] * leading + list(trailing)
            fits = (
                n is not None and size % mesh.shape[n] == 0
                for n, size in zip(names, shape, strict=True)
            )
            return [name if fit else None for name, fit in zip(names, fits, strict=True)], leading
    return [None] * len(shape), 0


def _split_largest_axis(
    spec: list[str | None], shape: tuple[int, ...], leading: int, fsdp: int
) -> None:
    free = [i for i in range(leading, len(shape)) if spec[i] is None and shape[i] % fsdp == 0]
    if free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"


def _num_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _local_shards(mesh: Mesh) -> Int[np.ndarray, "local"]:
    """The shards of the batch that this process's devices hold."""
    local = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
    return np.flatnonzero(local.any(axis=AXES.index("tensor")))


def _check_batch(mesh: Mesh, batch_size: int) -> None:
    shards = _num_shards(mesh)
    if batch_size % shards:
        sizes = _arithmetic({axis: mesh.shape[axis] for axis in BATCH_AXES})
        raise InputError(
            f"a batch of {batch_size} does not divide over mesh {sizes} = {shards}: "
            f"use a multiple of {shards}, or change config.mesh"
        )


def _arithmetic(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _from_environment(variable: str, given: int | None) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"environment variable {variable}={text!r}: a whole number is expected"
        ) from None
