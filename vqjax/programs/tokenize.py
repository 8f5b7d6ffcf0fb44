"""Writes the tokens of a data set, made once by a run's tokenizer, for a prior to be trained on.

    vqjax tokenize --workdir=runs/faces [--views=10 --out=/data/faces-tokens]
    python train.py --config=... --workdir=runs/faces --config.prior.data.tokens=/data/faces-tokens

Of each image as many pictures as config.data makes of it: one without augmentation, both mirrorings
where it is only mirrored, and --views drawn ones where it is cropped at random. Stop it whenever
you like and give the same command again: it goes on, shard by shard. On several hosts, each process
writes its part of the shards; the folder has to be one that all of them see.
"""

import itertools
import json
import logging
import math
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict, config_flags

from vqjax.data import build_source
from vqjax.data.pipeline import enumerated_views, view_batches
from vqjax.data.token_files import (
    FILE,
    TokenSetRecord,
    missing_shards,
    read_record,
    write_shards,
)
from vqjax.errors import InputError, did_you_mean
from vqjax.files import is_remote, open_path, write_whole
from vqjax.generation.codec import encode
from vqjax.parallel import batch_sharding, initialise_distributed, make_mesh, placed
from vqjax.programs.host_memory import keep_memory_of_host_computation
from vqjax.runs.build import build_stage_tokenizer, check_config, data_settings
from vqjax.runs.stages import stages_of, tokenizer_of, trained_stage
from vqjax.runs.weights import load_weights, split_decoder
from vqjax.runs.workdir import differences, read_config
from vqjax.tokenizers.base import tokenizer_shapes
from vqjax.tokens import Tokens
from vqjax.training.console import setup_logging
from vqjax.training.token_data import made_of, token_form, tokenized_images

VIEWS = 10
# Between two looks at what other processes still have to write.
POLL_SECONDS = 2.0

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py, with the tokenizer")
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, as of train.py, whose config.data is taken for that of the workdir",
)
STAGE = flags.DEFINE_string("stage", "", "A prior, or a tokenizer [the last one]")
NUM_VIEWS = flags.DEFINE_integer(
    "views", None, f"Pictures of each image that is cropped at random [{VIEWS}]"
)
OUT = flags.DEFINE_string("out", "", "Folder to write to [<workdir>/tokens/<tokenizer>]")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures that are encoded at once, at least")
SHARD_IMAGES = flags.DEFINE_integer("shard_images", 4096, "Images of a shard")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, 'Several hosts: "host:port" of process 0, or "auto" on a TPU pod or Slurm'
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes")
PROCESS = flags.DEFINE_integer("process_id", None, "Several hosts: which of them this is, from 0")
flags.mark_flag_as_required("workdir")

log = logging.getLogger("vqjax")


def main() -> None:
    """Encodes what is not there yet."""
    keep_memory_of_host_computation()
    initialise_distributed(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    workdir = open_path(WORKDIR.value or "", "--workdir")
    config = read_config(workdir)
    if CONFIG.value is not None:
        # The tokenizer is the workdir's all the same.
        config.data = CONFIG.value.data
    check_config(config)
    for flag in (BATCH_SIZE, SHARD_IMAGES):
        if flag.value < 1:
            raise InputError(f"--{flag.name}={flag.value}: at least 1 is needed")
    stage = _stage(config)
    settings = data_settings(config)
    views = _views(enumerated_views(settings))
    folder = _folder(workdir, tokenizer_of(config, stage))
    source = build_source(config.data.source, "train", settings.resolution)

    # Each process encodes its own images: none waits for another.
    mesh = make_mesh({"data": -1}, jax.local_devices())
    tokenizer = build_stage_tokenizer(config, tokenizer_of(config, stage))
    _, shapes = split_decoder(tokenizer, tokenizer_shapes(tokenizer, settings.resolution))
    trained = trained_stage(config, workdir, tokenizer_of(config, stage))
    encoder, _ = load_weights(trained, placed(shapes, mesh))
    form = token_form(tokenizer, settings.resolution, views)
    record = TokenSetRecord(
        made_of=made_of(config, stage, source, encoder),
        images=len(source),
        seed=config.seed,
        shard_images=SHARD_IMAGES.value,
        form=form,
    )
    main_process = jax.process_index() == 0
    _check_folder(folder, record)
    setup_logging(workdir, main_process)
    if main_process:
        write_whole(folder / FILE, record.to_json())

    shards = missing_shards(folder, record.shards, jax.process_index(), jax.process_count())
    log.info(
        "%s: %s images, %d of each, %d tokens; %d of %d shards to be written here",
        folder,
        f"{len(source):,}",
        views,
        form.per_image,
        len(shards),
        len(record.shards),
    )
    devices = mesh.size
    batches = view_batches(
        source,
        settings,
        list(itertools.chain.from_iterable(shard.images for shard in shards)),
        views=views,
        seed=config.seed,
        # All devices have as many pictures of a batch.
        batch_size=devices * math.ceil(BATCH_SIZE.value / (views * devices)),
    )

    def tokens_of(images: UInt8[np.ndarray, "b H W 3"]) -> Tokens:
        return encode(tokenizer, encoder, jax.device_put(images, batch_sharding(mesh)))

    with closing(batches):
        images = tokenized_images(batches, tokens_of, form)
        for shard in write_shards(folder, form, shards, images):
            log.info("%s is written", shard.name)
    # Whoever leaves first would end the others, as JAX takes it for a crash.
    while missing_shards(folder, record.shards):
        time.sleep(POLL_SECONDS)
    log.info(
        "done; to train on them: --config.%s.data.tokens=%s",
        (stages_of(config, "prior") or ["prior"])[-1],
        folder,
    )


def _stage(config: ConfigDict) -> str:
    """The stage whose tokens are asked for."""
    valid = [*stages_of(config, "tokenizer"), *stages_of(config, "prior")]
    if STAGE.value and STAGE.value not in valid:
        raise InputError(f"--stage={STAGE.value}: {did_you_mean(STAGE.value, valid)}")
    return STAGE.value or valid[-1]


def _views(enumerated: int | None) -> int:
    """How many pictures of each image."""
    given = NUM_VIEWS.value
    if enumerated is None:
        if given is not None and given < 1:
            raise InputError(f"--views={given}: at least 1 is needed")
        return VIEWS if given is None else given
    if given not in (None, enumerated):
        raise InputError(
            f"--views={given}: config.data makes {enumerated} of each image, as it crops none at"
            " random; leave the flag out"
        )
    return enumerated


def _folder(workdir: epath.Path, tokenizer: str) -> Path:
    """The folder to write to."""
    default = workdir / "tokens" / tokenizer
    folder = open_path(OUT.value, "--out") if OUT.value else default
    if is_remote(folder):
        raise InputError(f"--out={folder}: tokens are written to a disk; name a folder on one")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out={folder}: this is a file, a folder is needed")
    return Path(folder)


def _check_folder(folder: Path, record: TokenSetRecord) -> None:
    """Checks that what is in the folder already is of the same tokens.

    Raises:
        InputError: it is not; what differs is listed.
    """
    before = read_record(folder, f"--out={folder}")
    if before is None:
        return
    then, now = (json.loads(r.to_json()) for r in (before, record))
    differing = differences(then, now, "")
    if differing:
        raise InputError(
            f"--out={folder} has tokens of something else: {'; '.join(differing[:3])}: give"
            " another --out, or delete the folder"
        )
