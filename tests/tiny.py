"""A config small enough for tests: --config=tests/tiny.py:path=<folder of images>."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import filelock
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from vqjax.conditions import ClassCondition
from vqjax.data import DataSettings, build_source
from vqjax.parallel import make_mesh
from vqjax.runs.build import data_settings
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.workdir import write_condition, write_config
from vqjax.training import loop
from vqjax.training.loop import abstract_state, train_stage
from vqjax.training.stage import Stage, TrainingData
from vqjax.training.stage_kinds import build_stage
from vqjax.training.state import State

# Names the folder that all test processes share, see conftest.py.
SHARED = "VQJAX_TEST_SHARED"

CLASSES = ("checks", "discs", "stripes")
CONDITION = ClassCondition(CLASSES)
# Images as they lie there.
DATA = DataSettings(resolution=16, crop="center", flip=False, workers=0)
TRAIN_IMAGES, VALIDATION_IMAGES = 24, 7


def write_images(folder: Path, side: int = 16) -> Path:
    """A folder of coloured patterns, `train` and `validation`, with a sub-folder a class."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for split, count in (("train", TRAIN_IMAGES), ("validation", VALIDATION_IMAGES)):
        for i in range(count):
            label = i % len(CLASSES)
            shift = rng.integers(side)
            pattern = [
                (x + shift) // 4 % 2 == y // 4 % 2,
                (x - side / 2) ** 2 + (y - shift) ** 2 < side * 2,
                (x + y + shift) % 8 < 4,
            ][label]
            colours = rng.integers(0, 256, (2, 3), np.uint8)
            file = folder / split / CLASSES[label] / f"{i:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(pattern[..., None], *colours)).save(file)
    return folder


def get_config(arg: str = "") -> ConfigDict:
    """Both stages, on 4x4 latents: shifted windows, a halo, several query blocks."""
    args = common.parse_arg(arg, path="", steps=12)
    config = common.get_config()
    config.data.source = ConfigDict(
        {
            "name": "folder",
            "path": args.path,
            "train_folder": "train",
            "validation_folder": "validation",
        }
    )
    config.data.resolution = 16
    config.condition.name = "class"
    config.data.workers = 0

    config.tokenizer.model = ConfigDict(
        {
            "name": "efficient_vqgan",
            "patch_size": 4,
            "widths": (16,),
            "depths": (2,),
            "head_dim": 16,
            "window": 2,
            "dtype": "float32",
            "quantizer": {
                "num_codes": 32,
                "code_dim": 8,
                "learning": "ema",
                "latent_norm": "layer",
                "restart_below": 0.1,
            },
        }
    )
    config.tokenizer.loss.perceptual = 0.0
    discriminator = config.tokenizer.discriminator
    discriminator.model = ConfigDict({"name": "patchgan", "num_layers": 1, "width": 8})
    discriminator.start, discriminator.ramp = 4, 3
    discriminator.augment = ("color", "translation")
    discriminator.optimizer.learning_rate = 3e-3
    config.prior.model = ConfigDict(
        {
            "name": "multigrained",
            "dim": 32,
            "num_layers": 2,
            "num_heads": 4,
            "embed_dim": 8,
            "block_size": 2,
            "halo": 1,
            "query_blocks_per_image": 2,
            "scan": True,
            "dtype": "float32",
        }
    )
    config.prior.best_metric = "loss_at_0.5"
    for name in ("tokenizer", "prior"):
        stage = config[name]
        stage.batch_size = 8
        stage.steps = args.steps
        stage.optimizer.learning_rate = 3e-3
        stage.optimizer.warmup_steps = 2
        stage.ema_decay = 0.9
        stage.log_every = 2
        stage.eval_every = 6
        stage.checkpoint_every = 3
    config.sampling.steps = 2
    config.sampling.num_images = 4
    return config


def as_batch(images, labels):
    """A batch as train.py delivers it, of images and their classes."""
    return {"image": images, "condition": labels[:, None]}


def make_stage(config: ConfigDict, name: str, workdir: epath.PathLike) -> Stage:
    """A stage as train.py makes it."""
    return build_stage(config, name, epath.Path(workdir), CONDITION)


def train(
    config: ConfigDict, name: str, workdir: epath.PathLike, stage: Stage | None = None
) -> None:
    """Trains one stage as train.py does, on one device."""
    workdir = epath.Path(workdir)
    write_config(config, workdir)
    write_condition(workdir, CONDITION)
    sources = (build_source(config.data.source, split, 16) for split in ("train", "validation"))
    if stage is None:
        stage = _shared_stage(config.to_json(), name)
        stage.workdir = workdir
    data = TrainingData(data_settings(config), *sources, CONDITION)
    train_stage(stage, data, one_device(), workdir / name)


@functools.cache
def _shared_stage(config: str, name: str) -> Stage:
    """The stage of a config, shared by all trainings with it: tracing it takes longest."""
    return make_stage(ConfigDict(json.loads(config)), name, "")


@functools.cache
def _state_shapes(config: str, name: str) -> State:
    return abstract_state(_shared_stage(config, name), one_device())


# One program for each phase of a stage, however often it is trained.
loop.jit_train_step = functools.cache(loop.jit_train_step)


@functools.cache
def one_device() -> Mesh:
    """A mesh that does not depend on how many devices are simulated."""
    return make_mesh({"data": 1}, jax.devices()[:1])


def final_state(config: ConfigDict, name: str, workdir: epath.PathLike) -> State:
    """The newest checkpoint of a stage."""
    shapes = _state_shapes(config.to_json(), name)
    checkpointer = Checkpointer(epath.Path(workdir) / name / "checkpoints", read_only=True)
    state, _ = checkpointer.restore(shapes)
    checkpointer.close()
    return state


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@dataclasses.dataclass
class Run:
    """A finished run of both stages that nobody may write to."""

    config: ConfigDict
    workdir: Path
    tokenizer_files: dict[str, bytes]  # before the prior was trained


@functools.cache
def finished_run() -> Run:
    """Both stages trained without a break, once for all tests of all processes."""
    folder = Path(os.environ[SHARED])
    workdir, images, before = (folder / name for name in ("run", "images", "tokenizer"))
    done = folder / "done"
    with filelock.FileLock(folder / "lock"):
        if not done.exists():
            config = get_config(f"path={write_images(images)}")
            train(config, "tokenizer", workdir)
            shutil.copytree(workdir / "tokenizer", before)
            train(config, "prior", workdir)
            done.touch()
    return Run(get_config(f"path={images}"), workdir, contents(before))


def run_with_a_decoder(folder: Path) -> epath.Path:
    """The finished run with a decoder stage: its weights are the tokenizer's of 3 steps earlier."""
    finished = finished_run()
    config = finished.config.copy_and_resolve_references()
    config.decoder = common.decoder_stage(config.tokenizer)
    config.stages = ("tokenizer", "decoder", "prior")
    for name in ("tokenizer", "prior"):
        shutil.copytree(finished.workdir / name, folder / name)
    shutil.copytree(finished.workdir / "tokenizer", folder / "decoder")
    shutil.rmtree(folder / "decoder" / "checkpoints" / "12")
    write_config(config, folder)
    write_condition(folder, CONDITION)
    return epath.Path(folder)


def run_with_two_of_each(folder: Path) -> epath.Path:
    """The finished run with a second tokenizer and its prior: the first ones 3 steps earlier."""
    finished = finished_run()
    config = finished.config.copy_and_resolve_references()
    for name, first in (("coarse", "tokenizer"), ("coarse_prior", "prior")):
        config[name] = finished.config[first].copy_and_resolve_references()
        shutil.copytree(finished.workdir / first, folder / first)
        shutil.copytree(finished.workdir / first, folder / name)
        shutil.rmtree(folder / name / "checkpoints" / "12")
    config.coarse_prior.tokenizer = "coarse"
    write_config(config, folder)
    write_condition(folder, CONDITION)
    return epath.Path(folder)
