"""A training step of the convolutional VQGAN on this machine: ours against taming-transformers'.

    pip install torch einops && pip install --no-deps taming-transformers-rom1504
    python benchmarks/convolutional.py --size=256 --threads=2

The network of f = 16 (72 M parameters), 1,024 codes learned by gradient, l1 and the codebook's
loss, Adam; float32, random weights. Each runs in processes of its own, in turns, so that the peak
of memory is its own.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from measuring import peak_memory, take_cores

from vqjax.errors import InputError
from vqjax.programs import command_line, host_memory
from vqjax.runs.build import build_stage_tokenizer
from vqjax.tokenizers.base import init_keys

# Config files import each other as `configs.<name>`, from the root of the repository.
sys.path.append(str(Path(__file__).parents[1]))

from configs import ffhq_effvqgan

SIZE = flags.DEFINE_integer("size", 256, "Side of the images in pixels", lower_bound=16)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images a step", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 2, "Timed steps of a process", lower_bound=1)
TURNS = flags.DEFINE_integer("turns", 2, "Processes of each", lower_bound=1)
THREADS = flags.DEFINE_integer(
    "threads", None, "Processor cores that both may use [all]", lower_bound=1
)
SYSTEM = flags.DEFINE_enum("system", None, ["vqjax", "taming"], "Only this one, as JSON")

LEARNING_RATE = 4.5e-6


def step_of_vqjax(images: np.ndarray) -> tuple[Callable[[], float], int]:
    """A step that returns its loss, and the number of parameters."""
    # As `train.py` does.
    host_memory.keep_memory_of_host_computation()
    config = ffhq_effvqgan.get_config("f=16,tokenizer=vqgan,codebook=plain")
    config.tokenizer.model.dtype = "float32"
    model = build_stage_tokenizer(config, "tokenizer")
    optimizer = optax.adam(LEARNING_RATE, 0.5, 0.9)
    x = jnp.asarray(images)
    params = jax.jit(model.init)(init_keys(model, jax.random.key(0)), x)

    def loss(params: optax.Params) -> jax.Array:
        reconstruction, _, vq, _ = model.apply(params, x, train=True)
        return jnp.mean(jnp.abs(reconstruction - x)) + vq

    def update(state: tuple) -> tuple[tuple, jax.Array]:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), value

    compiled = jax.jit(update, donate_argnums=0)
    state = (params, optimizer.init(params))

    def step() -> float:
        nonlocal state
        state, value = compiled(state)
        return float(value)

    return step, sum(leaf.size for leaf in jax.tree.leaves(params))


def step_of_taming(images: np.ndarray) -> tuple[Callable[[], float], int]:
    """A step that returns its loss, and the number of parameters.

    Raises:
        InputError: PyTorch or taming-transformers is not installed.
    """
    try:
        import torch
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError as error:
        raise InputError(
            f"{error}: this benchmark needs PyTorch: pip install torch einops; pip install"
            " --no-deps taming-transformers-rom1504"
        ) from error
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    side = images.shape[1]
    network = {
        "ch": 128,
        "out_ch": 3,
        "ch_mult": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "attn_resolutions": [side // 16],
        "in_channels": 3,
        "resolution": side,
        "z_channels": 256,
        "double_z": False,
    }
    encode = torch.nn.Sequential(Encoder(**network), torch.nn.Conv2d(256, 256, 1))
    quantize = VectorQuantizer2(1024, 256, beta=0.25, legacy=False)
    decode = torch.nn.Sequential(torch.nn.Conv2d(256, 256, 1), Decoder(**network))
    params = [p for part in (encode, quantize, decode) for p in part.parameters()]
    optimizer = torch.optim.Adam(params, LEARNING_RATE, (0.5, 0.9))
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def step() -> float:
        z_q, vq, _ = quantize(encode(x))
        value = (decode(z_q) - x).abs().mean() + vq
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.item()

    return step, sum(p.numel() for p in params)


def measure(system: str) -> dict[str, float]:
    """Seconds of a step (median), the first one's too, peak memory, parameters."""
    side = SIZE.value
    images = np.random.default_rng(0).uniform(-1, 1, (BATCH_SIZE.value, side, side, 3))
    make = {"vqjax": step_of_vqjax, "taming": step_of_taming}[system]
    step, parameters = make(images.astype(np.float32))
    seconds = []
    for _ in range(1 + REPEATS.value):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[1:]),
        "first": seconds[0],
        "GiB": peak_memory() / 1024,
        "parameters": parameters,
    }


def main() -> None:
    """Prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    threads = take_cores(THREADS.value)
    if SYSTEM.value:
        print(json.dumps(measure(SYSTEM.value)))
        return
    print(f"{SIZE.value}x{SIZE.value} images, {BATCH_SIZE.value} at a time, {threads} cores")
    print(f"{'system':10}{'parameters':>14}{'first s':>10}{'step s':>10}{'peak GiB':>10}")
    for _ in range(TURNS.value):
        for system in ("vqjax", "taming"):
            command = [sys.executable, __file__, f"--system={system}", *sys.argv[1:]]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                raise InputError(f"{system} failed: {process.stderr.strip()[-500:]}")
            found = json.loads(process.stdout.splitlines()[-1])
            print(
                f"{system:10}{found['parameters']:14,}{found['first']:10.1f}"
                f"{found['seconds']:10.2f}{found['GiB']:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    command_line.run(main)
