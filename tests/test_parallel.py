import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import AxisType
from ml_collections import ConfigDict

from vqjax.errors import InputError
from vqjax.parallel import (
    batch_sharding,
    global_batch,
    initialise_distributed,
    make_mesh,
    process_rows,
    state_shardings,
    to_host,
)

LAYERS, DIM, HEADS, HEAD_DIM, HIDDEN = 3, 16, 4, 4, 64


def transformer(stacked=True):
    """Parameters named and shaped as those of `vqjax.nn.transformer`."""
    front = (LAYERS,) if stacked else ()
    shapes = {
        "attention": {
            "qkv": {"kernel": (DIM, 3, HEADS, HEAD_DIM), "bias": (3, HEADS, HEAD_DIM)},
            "out": {"kernel": (HEADS, HEAD_DIM, DIM), "bias": (DIM,)},
        },
        "mlp": {
            "up": {"kernel": (DIM, HIDDEN), "bias": (HIDDEN,)},
            "down": {"kernel": (HIDDEN, DIM), "bias": (DIM,)},
        },
        "norm_mlp": {"scale": (DIM,), "bias": (DIM,)},
    }
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: rng.normal(scale=0.1, size=(*front, *shape)).astype(np.float32),
        {"blocks": shapes},
        is_leaf=lambda x: isinstance(x, tuple),
    )


def specs(tree, mesh, **options):
    return jax.tree.map(lambda sharding: sharding.spec, state_shardings(tree, mesh, **options))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": -1, "fsdp": 1, "tensor": 1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"tensor": 8}, (1, 1, 8)),
        (ConfigDict({"data": 4, "fsdp": 2, "tensor": 1}), (4, 2, 1)),
    ],
)
def test_mesh_takes_the_rest(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert make_mesh({"data": -1}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3, "fsdp": 2, "tensor": 1},
            "mesh data 3 x fsdp 2 x tensor 1 = 6, but there are 8 devices",
        ),
        ({"data": 16}, "mesh data 16 x fsdp 1 x tensor 1 = 16, but there are 8 devices"),
        (
            {"data": -1, "fsdp": 3},
            "mesh fsdp 3 x tensor 1 = 3, but there are 8 devices, which 3 does not divide",
        ),
        ({"data": -1, "fsdp": -1}, "mesh data -1 x fsdp -1 x tensor 1: every size is at least 1"),
        ({"data": 0}, "mesh data 0"),
        ({"model": 2}, "unknown axis model; valid: data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_shows_the_arithmetic(sizes, message):
    with pytest.raises(InputError) as error:
        make_mesh(sizes)
    assert message in str(error.value)


@pytest.mark.parametrize("stacked", [True, False])
def test_tensor_rules_split_heads_and_hidden_units(stacked):
    mesh = make_mesh({"data": 4, "tensor": 2})
    spec = specs(transformer(stacked), mesh, fsdp_min_size=10**9)["blocks"]
    front = (None,) if stacked else ()
    attention, mlp = spec["attention"], spec["mlp"]
    assert attention["qkv"]["kernel"] == P(*front, None, None, "tensor", None)
    assert attention["qkv"]["bias"] == P(*front, None, "tensor", None)
    assert attention["out"]["kernel"] == P(*front, "tensor", None, None)
    assert mlp["up"]["kernel"] == P(*front, None, "tensor")
    assert mlp["up"]["bias"] == P(*front, "tensor")
    assert mlp["down"]["kernel"] == P(*front, "tensor", None)
    rest = [attention["out"]["bias"], mlp["down"]["bias"], *jax.tree.leaves(spec["norm_mlp"])]
    assert not any(any(s) for s in rest)


def test_what_tensor_does_not_divide_stays_whole():
    mesh = make_mesh({"tensor": 8})
    spec = specs(transformer(), mesh, fsdp_min_size=10**9)["blocks"]
    assert not any(spec["attention"]["qkv"]["kernel"])
    assert spec["mlp"]["up"]["kernel"] == P(None, None, "tensor")


def test_fsdp_takes_the_largest_free_axis_of_large_leaves():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    spec = specs(transformer(), mesh, fsdp_min_size=DIM * HIDDEN)["blocks"]
    assert spec["mlp"]["up"]["kernel"] == P(None, "fsdp", "tensor")
    assert spec["mlp"]["down"]["kernel"] == P(None, "tensor", "fsdp")
    assert spec["attention"]["qkv"]["kernel"] == P(None, "fsdp", None, "tensor", None)
    assert spec["mlp"]["up"]["bias"] == P(None, "tensor")
    other = {
        "embedding": np.zeros((10, 12)),
        "prime": np.zeros((11, 13)),
        "small": np.zeros((4, 4)),
        "mlp": {"up": {"kernel": np.zeros((64, 5, 6))}},
    }
    spec = specs(other, mesh, fsdp_min_size=100)
    assert spec["embedding"] == P(None, "fsdp")
    assert not any(spec["prime"])
    assert not any(spec["small"])
    assert not any(s == "fsdp" for s in spec["mlp"]["up"]["kernel"]), "a stack of layers was split"


def test_optimizer_moments_live_where_their_parameters_do():
    params = transformer()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    moments = jax.eval_shape(optimizer.init, params)
    state = {"generator": {"params": params, "opt_state": moments, "ema": params}}
    spec = specs(state, make_mesh({"fsdp": 4, "tensor": 2}), fsdp_min_size=64)["generator"]
    assert spec["ema"] == spec["params"]
    adam = spec["opt_state"][1][0]
    assert adam.mu == adam.nu == spec["params"]
    assert adam.count == P()
    assert any("tensor" in s for s in jax.tree.leaves(adam.mu))
    assert any("fsdp" in s for s in jax.tree.leaves(adam.mu))


def forward(params, x):
    def layer(x, p):
        q, k, v = jnp.moveaxis(
            jnp.einsum("bnd,dthe->bnthe", x, p["attention"]["qkv"]["kernel"])
            + p["attention"]["qkv"]["bias"],
            2,
            0,
        )
        y = jax.nn.dot_product_attention(q, k, v)
        x = x + jnp.einsum("bnhe,hed->bnd", y, p["attention"]["out"]["kernel"])
        h = jax.nn.gelu(x @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
        return x + h @ p["mlp"]["down"]["kernel"], None

    return jax.lax.scan(layer, x, params["blocks"])[0]


def loss_and_gradients(sizes, devices):
    mesh = make_mesh(sizes, devices)
    params = transformer()
    params = jax.device_put(params, state_shardings(params, mesh, fsdp_min_size=64))
    batch = np.random.default_rng(0).normal(size=(8, 5, DIM)).astype(np.float32)
    batch = global_batch(batch[process_rows(mesh, 8)], mesh)
    loss = jax.value_and_grad(lambda params, x: (forward(params, x) ** 2).mean())
    return jax.tree.map(to_host, jax.jit(loss)(params, batch))


def test_a_mesh_of_all_axes_computes_what_one_device_does():
    expected = loss_and_gradients({"data": 1}, jax.devices()[:1])
    sharded = loss_and_gradients({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_batch_goes_over_data_and_fsdp():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    local = {"images": np.arange(24.0).reshape(8, 3), "labels": np.arange(8)}
    batch = global_batch(local, mesh)
    assert batch["images"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert {shard.data.shape for shard in batch["images"].addressable_shards} == {(2, 3)}
    for name, array in batch.items():
        np.testing.assert_array_equal(to_host(array), local[name])
    np.testing.assert_array_equal(process_rows(mesh, 8), np.arange(8))
    with pytest.raises(
        InputError, match="a batch of 6 does not divide over mesh data 2 x fsdp 2 = 4"
    ):
        global_batch({"images": np.zeros((6, 3))}, mesh)
    with pytest.raises(InputError, match="use a multiple of 4"):
        process_rows(mesh, 10)


def test_one_process_is_the_default(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    assert initialise_distributed() is False


def test_a_half_described_distributed_run_is_refused(monkeypatch):
    with pytest.raises(InputError, match="give all three"):
        initialise_distributed("127.0.0.1:1234", process_id=1)
    with pytest.raises(InputError, match="0 to num_processes - 1"):
        initialise_distributed("127.0.0.1:1234", 2, 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(InputError, match="JAX_PROCESS_ID='first'"):
        initialise_distributed("127.0.0.1:1234", 2)


WORKER = """
import json, sys
import jax, numpy as np
from vqjax.parallel import (
    global_batch, initialise_distributed, make_mesh, process_rows, replicated, to_host
)

assert initialise_distributed()
assert jax.process_count() == 2 and jax.device_count() == 4
data = np.arange(24.0).reshape(8, 3)
rows = {}
for name, sizes in {"split": {"data": 2, "fsdp": 2}, "shared": {"data": 1, "tensor": 4}}.items():
    mesh = make_mesh(sizes)
    mine = process_rows(mesh, 8)
    batch = global_batch(data[mine], mesh)
    assert batch.shape == (8, 3)
    np.testing.assert_array_equal(to_host(batch), data)
    mean = jax.jit(lambda x: x.mean(), out_shardings=replicated(mesh))(batch)
    assert float(mean) == data.mean()
    np.testing.assert_array_equal(to_host(mean), data.mean())
    rows[name] = mine.tolist()
print("ROWS", json.dumps(rows))
"""


@pytest.mark.slow
def test_two_processes_make_one_batch():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    assert '"split": [0, 1, 2, 3], "shared": [0, 1, 2, 3, 4, 5, 6, 7]' in outputs[0]
    assert '"split": [4, 5, 6, 7], "shared": [0, 1, 2, 3, 4, 5, 6, 7]' in outputs[1]
