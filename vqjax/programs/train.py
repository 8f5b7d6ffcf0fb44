"""Trains the stages of a config, in order, in one workdir; goes on where it was stopped.

python train.py --config=configs/openmoji_effvqgan.py --workdir=runs/openmoji [--config.key=value
...]
"""

import logging

import jax
from absl import flags
from ml_collections import config_flags

from vqjax.data import build_source
from vqjax.files import open_path
from vqjax.parallel import initialise_distributed, make_mesh, process_rows
from vqjax.programs.host_memory import keep_memory_of_host_computation
from vqjax.runs.build import build_stage, stage_names
from vqjax.runs.record import record_start
from vqjax.runs.workdir import (
    check_workdir,
    write_class_names,
    write_config,
)
from vqjax.training.console import setup_logging
from vqjax.training.loop import train_stage
from vqjax.training.profile import parse_steps

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with arguments after a colon: configs/openmoji_effvqgan.py:res=64"
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://bucket/folder; made if it is not there"
)
ACCEPT = flags.DEFINE_bool(
    "accept_config_changes", False, "Go on in a workdir that was made with another config"
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, 'Several hosts: "host:port" of process 0, or "auto" on a TPU pod or Slurm'
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes")
PROCESS = flags.DEFINE_integer("process_id", None, "Several hosts: which of them this is, from 0")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the stages of the config."""
    keep_memory_of_host_computation()
    initialise_distributed(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    config, workdir = CONFIG.value, open_path(WORKDIR.value or "", "--workdir")
    is_main = jax.process_index() == 0

    # Everything that can be wrong with a config is found before any work begins.
    mesh = make_mesh(config.mesh)
    parse_steps(config.profile)
    stages = stage_names(config)
    for name in stages:
        stage = build_stage(config, name, workdir, num_classes=1)
        jax.eval_shape(stage.init, jax.random.key(0))
        process_rows(mesh, config[name].batch_size)
    if not ACCEPT.value:
        check_workdir(config, workdir)
    setup_logging(workdir, is_main)
    logging.getLogger("vqjax").info(
        "%s: %d %s devices, mesh %s", workdir, mesh.size, jax.default_backend(), dict(mesh.shape)
    )

    resolution = config.data.resolution
    train_source = build_source(config.data.source, "train", resolution)
    validation_source = build_source(config.data.source, "validation", resolution)
    if is_main:
        write_config(config, workdir)
        write_class_names(workdir, train_source.class_names)
        record_start(workdir)

    for name in stages:
        if config[name].init_from:
            continue
        stage = build_stage(config, name, workdir, train_source.num_classes)
        train_stage(stage, config.data, mesh, workdir / name, train_source, validation_source)
