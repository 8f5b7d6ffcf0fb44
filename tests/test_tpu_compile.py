"""The full-size training steps, compiled for a TPU slice without having one; needs libtpu.

    pytest -m slow -n 0 -s tests/test_tpu_compile.py

prints what each takes of a chip's memory. A step is minutes of work for two cores.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("libtpu"), reason="no libtpu: pip install -e '.[tpu]'"
    ),
]

ROOT = Path(__file__).parents[1]
CHIP_GIB = 16  # of a v5e

# A process of its own, since libtpu reads these when it is loaded.
ENVIRONMENT = {
    # Compiling takes no chip, so it need not wait for another process that has loaded libtpu.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
COMPILE = """
import importlib, json, sys, time
import jax
from jax.experimental import topologies
from etils import epath
from vqjax.parallel import make_mesh, placed
from vqjax.training.loop import abstract_state, batch_shapes, jit_train_step
from vqjax.training.stage_kinds import build_stage

module, arg, name = sys.argv[1:]
slice_ = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu")
config = importlib.import_module(f"configs.{module}").get_config(arg)
mesh = make_mesh(config.mesh, slice_.devices)
stage = build_stage(config, name, epath.Path())
began = time.monotonic()
compiled = jit_train_step(stage, mesh).lower(
    abstract_state(stage, mesh),
    placed(stage.frozen_shapes(), mesh),
    batch_shapes(stage.settings.batch_size, config.data.resolution, 0, mesh),
    jax.eval_shape(lambda: stage.training_key),
).compile()
plan = compiled.memory_analysis()
print(json.dumps({
    "chips": mesh.size,
    "batch": stage.settings.batch_size,
    "compile s": time.monotonic() - began,
    "arguments GiB": plan.argument_size_in_bytes / 2**30,
    "results besides GiB": (plan.output_size_in_bytes - plan.alias_size_in_bytes) / 2**30,
    "temporaries GiB": plan.temp_size_in_bytes / 2**30,
    "code GiB": plan.generated_code_size_in_bytes / 2**30,
    "TFLOP a chip, a loop's body once": compiled.cost_analysis()["flops"] / 1e12,
}))
"""


EFFVQGAN = [
    # The prior only fits where it recomputes.
    ("ffhq_effvqgan", arg + more, stage)
    for arg in ("f=16", "f=8", "res=512", "res=1024")
    for stage, more in (("tokenizer", ""), ("prior", ",remat=true"))
]
SEQGAN = [
    ("ffhq_seqgan", "", "tokenizer"),
    ("ffhq_seqgan", "", "decoder"),
    ("ffhq_seqgan", "prior=ar", "prior"),
    ("ffhq_seqgan", "prior=nar", "prior"),
]


@pytest.mark.parametrize(("config", "arg", "stage"), [*EFFVQGAN, *SEQGAN])
def test_step_fits_a_chip(config, arg, stage, capsys):
    """At the config's batch."""
    process = subprocess.run(
        [sys.executable, "-c", COMPILE, config, arg, stage],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{config}:{arg} {stage}:", {k: round(v, 2) for k, v in found.items()})
    memory = [value for name, value in found.items() if name.endswith("GiB")]
    assert found["chips"] == 8
    assert 0 < sum(memory) < CHIP_GIB
