"""Trains the stages of a config, in order, in one workdir; goes on where it was stopped.

python train.py --config=configs/openmoji_effvqgan.py --workdir=runs/openmoji
[--config.key=value ...]
"""

import logging

import jax
from absl import flags
from ml_collections import config_flags

from vqjax.conditions import NoCondition
from vqjax.data import build_source
from vqjax.errors import InputError
from vqjax.files import open_path
from vqjax.parallel import initialise_distributed, make_mesh, process_rows
from vqjax.programs.host_memory import keep_memory_of_host_computation
from vqjax.runs.build import build_condition, check_config, data_settings
from vqjax.runs.description import as_text, describe
from vqjax.runs.record import record_start
from vqjax.runs.stages import check_weights_will_be_there, stages_to_train
from vqjax.runs.workdir import check_condition, check_workdir, write_condition, write_config
from vqjax.training.console import setup_logging
from vqjax.training.loop import abstract_state, train_stage
from vqjax.training.profile import parse_steps
from vqjax.training.stage import TrainingData
from vqjax.training.stage_kinds import build_stage

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

    # Everything that can be wrong is found before any work begins, and first what needs no data.
    mesh = make_mesh(config.mesh)
    check_config(config)
    traced = parse_steps(config.profile)
    names = stages_to_train(config)
    unconditional = config.condition.name == NoCondition.name
    stages = {
        name: build_stage(config, name, workdir)
        for name in names
        if unconditional or config[name].kind != "prior"
    }
    if not ACCEPT.value:
        check_workdir(config, workdir)
    check_weights_will_be_there(config, workdir)
    settings = data_settings(config)
    train_source = build_source(config.data.source, "train", settings.resolution)
    validation_source = build_source(config.data.source, "validation", settings.resolution)
    condition = build_condition(config, train_source)
    if not ACCEPT.value:
        check_condition(condition, workdir)
    data = TrainingData(settings, train_source, validation_source, condition)
    for name in names:
        if name not in stages:
            stages[name] = build_stage(config, name, workdir, condition)
        stages[name].check_data(data)
        stages[name].check_start(abstract_state(stages[name], mesh).model.variables)
        process_rows(mesh, stages[name].settings.batch_size)
    if traced and all(traced.start > stage.settings.steps for stage in stages.values()):
        raise InputError(
            f"config.profile={config.profile}: no stage that is trained has such a step"
        )

    setup_logging(workdir, is_main)
    log = logging.getLogger("vqjax")
    log.info(
        "%s: %d %s devices, mesh %s", workdir, mesh.size, jax.default_backend(), dict(mesh.shape)
    )
    for line in as_text(describe(config, condition)).splitlines():
        log.info("%s", line)
    if is_main:
        write_config(config, workdir)
        write_condition(workdir, condition)
        record_start(workdir)
    for name in names:
        train_stage(stages[name], data, mesh, workdir / name, config.profile)
