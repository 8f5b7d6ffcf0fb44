import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from vqjax.errors import InputError
from vqjax.parallel import make_mesh, state_shardings
from vqjax.runs.checkpoints import Checkpointer


@flax.struct.dataclass
class Network:
    params: dict
    opt_state: tuple
    ema: dict | None
    model_state: dict


@flax.struct.dataclass
class State:
    step: jax.Array
    model: Network
    discriminator: Network | None


def make_state(seed=0, width=6):
    rng = np.random.default_rng(seed)
    params = {
        "blocks": {
            "kernel": jnp.asarray(rng.normal(size=(4, width)), jnp.float32),
            "half": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16),
        },
        "embedding": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    model_state = {"quantizer": {"usage": jnp.asarray(rng.integers(0, 9, 5), jnp.int32)}}
    network = Network(params, optimizer.init(params), None, model_state)
    return State(jnp.int32(seed), network, None)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(folder, steps, **options):
    checkpointer = Checkpointer(folder, **options)
    for step in steps:
        checkpointer.save(step, make_state(step))
    checkpointer.wait()
    return checkpointer


def step_folders(folder):
    return sorted(int(p.name) for p in Path(folder).iterdir() if p.name.isdigit())


@pytest.fixture
def warnings_of(caplog):
    """What the module logs, whatever other tests did to the logging of the package."""
    logger = logging.getLogger("vqjax.runs.checkpoints")
    logger.addHandler(caplog.handler)
    yield lambda: list(
        dict.fromkeys(r.getMessage() for r in caplog.records if r.name == logger.name)
    )
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip_is_bit_exact(tmp_path, asynchronous):
    state = make_state(3)
    first = saved(tmp_path, [3], asynchronous=asynchronous)
    first.close()
    second = Checkpointer(tmp_path)
    assert second.latest_step == 3
    restored, step = second.restore(abstract(state))
    assert step == 3
    assert_identical(restored, state)
    second.close()


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpointer = Checkpointer(tmp_path / "new")
    assert checkpointer.restore(abstract(make_state())) is None
    assert checkpointer.latest_step is None
    assert checkpointer.best_step is None
    reader = Checkpointer(tmp_path / "nowhere", read_only=True)
    assert reader.restore_partial({"step": jax.ShapeDtypeStruct((), jnp.int32)}) is None
    assert not (tmp_path / "nowhere").exists()


def test_buffers_may_be_donated_while_the_write_is_under_way(tmp_path):
    state = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
    expected = np.array(state["w"])
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state)
    step = jax.jit(lambda s: {"w": s["w"] * 0 - 1}, donate_argnums=0)
    for _ in range(3):
        state = step(state)
    jax.block_until_ready(state)
    restored, _ = checkpointer.restore(abstract(state))
    np.testing.assert_array_equal(restored["w"], expected)
    checkpointer.close()


def test_keeps_the_newest_and_the_best_across_restarts(tmp_path):
    scores = {10: 1.0, 20: 7.0, 30: float("nan"), 40: 2.0, 50: 3.0}
    for step, score in scores.items():
        checkpointer = Checkpointer(tmp_path, keep=2, best_metric="psnr")
        checkpointer.save(step, make_state(step), {"psnr": score, "loss": 0.0})
        checkpointer.close()
    assert step_folders(tmp_path) == [20, 40, 50]
    checkpointer = Checkpointer(tmp_path, keep=2, best_metric="psnr")
    assert (checkpointer.latest_step, checkpointer.best_step) == (50, 20)
    restored, step = checkpointer.restore(abstract(make_state()), "best")
    assert step == 20
    assert_identical(restored, make_state(20))
    checkpointer.save(60, make_state(60))
    checkpointer.wait()
    assert step_folders(tmp_path) == [20, 50, 60]
    checkpointer.close()
    smallest = Checkpointer(tmp_path, best_metric="psnr", best_mode="min", read_only=True)
    assert smallest.best_step == 50


def test_without_a_metric_the_best_is_the_last(tmp_path):
    checkpointer = saved(tmp_path, [1, 2], best_metric="psnr")
    assert checkpointer.best_step is None
    assert checkpointer.restore(abstract(make_state()), "best")[1] == 2
    checkpointer.close()


def test_a_step_is_saved_once(tmp_path):
    checkpointer = saved(tmp_path, [1])
    checkpointer.save(1, make_state(99))
    restored, _ = checkpointer.restore(abstract(make_state()))
    assert_identical(restored, make_state(1))
    checkpointer.close()


def test_restores_onto_another_mesh(tmp_path):
    state = make_state(5)
    checkpointer = Checkpointer(tmp_path)
    saved_on = state_shardings(state, make_mesh({"data": 2, "fsdp": 4}), fsdp_min_size=1)
    checkpointer.save(5, jax.device_put(state, saved_on))
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    wanted_on = state_shardings(state, mesh, (("embedding$", jax.P("tensor", None)),), 1)
    target = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        wanted_on,
    )
    restored, _ = checkpointer.restore(target)
    assert_identical(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == wanted_on
    assert restored.model.params["embedding"].sharding.spec == jax.P("tensor", "fsdp")
    checkpointer.close()


def test_a_part_is_restored_without_the_rest(tmp_path):
    state = make_state(7)
    saved(tmp_path, [7]).close()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        {
            "model": {
                "params": state.model.params,
                "model_state": state.model.model_state,
            }
        },
    )
    reader = Checkpointer(tmp_path, read_only=True)
    part, step = reader.restore_partial(shapes)
    assert step == 7
    assert_identical(part["model"]["params"], state.model.params)
    assert_identical(part["model"]["model_state"], state.model.model_state)
    with pytest.raises(InputError, match="model/ema/kernel is not in the checkpoint"):
        reader.restore_partial(
            {"model": {"ema": {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}}}
        )


def test_another_configuration_is_not_damage(tmp_path):
    checkpointer = saved(tmp_path, [1, 2])
    with pytest.raises(InputError) as error:
        checkpointer.restore(abstract(make_state(width=9)))
    message = str(error.value)
    assert (
        "model/params/blocks/kernel is float32[4, 6] in the checkpoint, float32[4, 9] here"
        in message
    )
    assert "\n" not in message
    other = make_state().replace(discriminator=make_state().model)
    with pytest.raises(InputError, match=r"discriminator/.* is not in the checkpoint.*more"):
        checkpointer.restore(abstract(other))
    half = abstract(make_state()).replace(step=jax.ShapeDtypeStruct((), jnp.int8))
    with pytest.raises(InputError, match=r"step is int32\[\] in the checkpoint, int8\[\] here"):
        checkpointer.restore(half)
    assert step_folders(tmp_path) == [1, 2]
    checkpointer.close()


def damage(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_to_a_file_is_taken_for_a_state(tmp_path, warnings_of, capfd):
    """Every file of a checkpoint missing, cut or zeroed: the exact state, or the previous one."""
    original = tmp_path / "original"
    saved(original, [1, 2]).close()
    target = abstract(make_state())
    fallbacks = 0
    files = sorted(p.relative_to(original) for p in (original / "2").rglob("*") if p.is_file())
    for file in files:
        for kind in ("missing", "half", "zeros"):
            folder = tmp_path / "copy"
            shutil.copytree(original, folder)
            damage(folder / file, kind)
            checkpointer = Checkpointer(folder)
            restored, step = checkpointer.restore(target)
            assert_identical(restored, make_state(step))
            assert (folder / "damaged_2").exists() == (step == 1), (file, kind)
            fallbacks += step == 1
            checkpointer.close()
            shutil.rmtree(folder)
    assert fallbacks > 10
    assert all(m.startswith("checkpoint 2 in") and "\n" not in m for m in warnings_of())
    assert capfd.readouterr().err == ""


def test_a_damaged_checkpoint_is_moved_aside_and_its_step_can_be_saved_again(tmp_path, warnings_of):
    for round_ in range(2):
        checkpointer = saved(tmp_path, [1, 2])
        shutil.rmtree(tmp_path / "2" / "state" / "ocdbt.process_0")
        restored, step = checkpointer.restore(abstract(make_state()))
        assert step == 1
        assert_identical(restored, make_state(1))
        assert checkpointer.latest_step == 1
        assert warnings_of()[-1].endswith(f"is now damaged_2{'_1' if round_ else ''}")
        checkpointer.save(2, make_state(22))
        assert_identical(checkpointer.restore(abstract(make_state()))[0], make_state(22))
        checkpointer.close()


def test_if_no_checkpoint_can_be_read_nothing_is_moved_and_it_says_so(tmp_path):
    checkpointer = saved(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / str(step) / "state" / "_METADATA").write_text("{")
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of its checkpoints \(2, 1\) can be read"):
            checkpointer.restore(abstract(make_state()))
    checkpointer.close()


def test_reading_from_outside_changes_nothing(tmp_path, warnings_of):
    saved(tmp_path, [1, 2]).close()
    (tmp_path / "2" / "state" / "_METADATA").write_text("{")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.restore(abstract(make_state()))[1] == 1
    assert len(warnings_of()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_metrics_do_not_cost_the_state(tmp_path):
    checkpointer = Checkpointer(tmp_path, best_metric="psnr")
    for step, score in ((1, 5.0), (2, 9.0)):
        checkpointer.save(step, make_state(step), {"psnr": score})
    checkpointer.close()
    (file,) = (tmp_path / "2" / "evaluation").rglob("metadata")
    assert json.loads(file.read_text()) == {"psnr": 9.0}
    file.write_text("{")
    checkpointer = Checkpointer(tmp_path, best_metric="psnr")
    assert checkpointer.best_step == 1
    assert checkpointer.restore(abstract(make_state()))[1] == 2
    checkpointer.close()


def test_impossible_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="keep=0"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises((InputError, jaxtyping.TypeCheckError), match="best_mode"):
        Checkpointer(tmp_path, best_mode="largest")


def run(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
from vqjax.runs.checkpoints import Checkpointer

checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, {"w": jnp.ones(1000)})
checkpointer.wait()
checkpointer.save(2, {"w": jax.random.normal(jax.random.key(0), (16_000_000,))})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path):
    process = run("-c", KILLED, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert any("tmp" in p.name for p in tmp_path.iterdir()), "killed too late for this test"
    checkpointer = Checkpointer(tmp_path)
    restored, step = checkpointer.restore({"w": jax.ShapeDtypeStruct((1000,), jnp.float32)})
    assert step == 1
    np.testing.assert_array_equal(restored["w"], np.ones(1000))
    checkpointer.save(3, restored)
    checkpointer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


TWO_PROCESSES = """
import logging, shutil, sys
import jax, jax.numpy as jnp, numpy as np
from vqjax.runs.checkpoints import Checkpointer
from vqjax.parallel import initialise_distributed, make_mesh, state_shardings, to_host

folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
initialise_distributed(f"127.0.0.1:{port}", 2, index)
mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 1})
shardings = state_shardings({"w": jnp.zeros(64)}, mesh, fsdp_min_size=1)
fill = jax.jit(lambda x: {"w": x + jnp.arange(64.0)}, out_shardings=shardings)
checkpointer = Checkpointer(folder)
for step in (1, 2):
    checkpointer.save(step, fill(step))
checkpointer.wait()
if index == 1:
    shutil.rmtree(f"{folder}/2/state/d")
target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), fill(0), shardings
)
jax.experimental.multihost_utils.sync_global_devices("damaged")
restored, step = checkpointer.restore(target)
assert step == 1, step
np.testing.assert_array_equal(to_host(restored["w"]), 1 + np.arange(64.0))
checkpointer.save(2, restored)
checkpointer.close()
assert checkpointer.latest_step == 2
"""


@pytest.mark.slow
def test_two_processes_share_a_checkpoint_and_agree_that_it_is_damaged(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    workers = [run("-c", TWO_PROCESSES, tmp_path / "run", port, i, **flags) for i in range(2)]
    try:
        outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    assert (tmp_path / "run" / "damaged_2").exists()
    restored, step = Checkpointer(tmp_path / "run", read_only=True).restore(
        {"w": jax.ShapeDtypeStruct((64,), jnp.float32)}
    )
    assert step == 2
    np.testing.assert_array_equal(restored["w"], 1 + np.arange(64.0))
