"""Inception-v3 of FID on this machine: ours against pytorch-fid's, with the same random weights.

    pip install torch torchvision pytorch-fid
    python benchmarks/inception.py --batch_size=16 --threads=2

The two take turns, batch by batch, and their times are medians, after a first turn that is not
counted. Their features are compared, and it is shown that memory does not grow with the number of
images. Nothing is downloaded: the weights are drawn, and handed over in a file of torch.save.
"""

import functools
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import flags
from measuring import peak_memory, take_cores

from vqjax.errors import InputError
from vqjax.features.inception import load_inception
from vqjax.programs import command_line

BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images at a time", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 256, "Their side in pixels", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed batches of each", lower_bound=1)
THREADS = flags.DEFINE_integer(
    "threads", None, "Processor cores that both may use [all]", lower_bound=1
)


def pytorch_fid_network() -> tuple[Any, dict[str, Any]]:
    """pytorch-fid's network with random weights, and these under the names of its file.

    Raises:
        InputError: PyTorch, torchvision or pytorch-fid is not installed, or they do not fit.
    """
    try:
        import torch
        import torchvision
        from pytorch_fid import inception
    except (ImportError, RuntimeError) as error:  # torchvision raises either if torch is another.
        raise InputError(
            f"{error}: this benchmark, and nothing else, needs PyTorch:"
            " pip install torch torchvision pytorch-fid"
        ) from error
    generator = torch.Generator().manual_seed(0)
    # What it loads is replaced below.
    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torchvision.models.Inception3, "load_state_dict"),
    ):
        network = inception.fid_inception_v3()
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("bn.bias", "running_mean")):
            value.uniform_(-0.3, 0.3, generator=generator)
    with mock.patch.object(inception, "fid_inception_v3", lambda: network):
        wrapper = inception.InceptionV3(normalize_input=False).eval()
    return wrapper, network.state_dict()


def seconds(function: Callable[[], Any]) -> float:
    """Time of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    # What is compiled is timed, not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    threads = take_cores(THREADS.value)
    theirs, state = pytorch_fid_network()
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception.pth"
        torch.save(state, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        module, variables, _ = load_inception(file, sha256=digest)
    apply: Callable[..., Any] = module.apply
    ours = functools.partial(jax.jit(apply), jax.device_put(variables))

    rng = np.random.default_rng(0)
    count, size = BATCH_SIZE.value, SIZE.value

    def batch() -> np.ndarray:
        return rng.uniform(-1, 1, (count, size, size, 3)).astype(np.float32)

    def features_of_ours(images: np.ndarray) -> np.ndarray:
        return np.asarray(ours(images))

    def features_of_theirs(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))[0][..., 0, 0].numpy()

    compile_seconds = seconds(lambda: features_of_ours(batch()))
    memory = []
    for batches in (REPEATS.value, 3 * REPEATS.value):
        for _ in range(batches):
            features_of_ours(batch())
        memory.append(peak_memory())

    times: dict[str, list[float]] = {"vqjax": [], "pytorch-fid": []}
    difference = scale = 0.0
    for _ in range(1 + REPEATS.value):
        images = batch()
        times["vqjax"].append(seconds(lambda: features_of_ours(images)))  # noqa: B023
        times["pytorch-fid"].append(seconds(lambda: features_of_theirs(images)))  # noqa: B023
        a, b = features_of_ours(images), features_of_theirs(images)
        difference = max(difference, float(np.abs(a - b).max()))
        scale = max(scale, float(np.abs(b).max()))

    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), {threads} cores; jax {jax.__version__},"
        f" torch {torch.__version__}; {size}x{size} images, {count} at a time; float32"
    )
    speed = {name: count / statistics.median(values[1:]) for name, values in times.items()}
    print(f"{'network':14}{'images/s':>10}{'to theirs':>12}")
    for name, value in speed.items():
        print(f"{name:14}{value:10.2f}{value / speed['pytorch-fid']:12.2f}")
    print(f"first batch of vqjax, with compiling: {compile_seconds:.1f} s")
    print(f"largest difference of features: {difference:.1e}, of values up to {scale:.2f}")
    images_seen = [(1 + n * REPEATS.value) * count for n in (1, 4)]
    print(
        "peak memory of vqjax's loop: "
        + ", ".join(
            f"{mib:,.0f} MiB after {seen} images"
            for mib, seen in zip(memory, images_seen, strict=True)
        )
    )


if __name__ == "__main__":
    command_line.run(main)
