"""Every tokenizer with every prior that takes its tokens, with a class and without, through a run.

And every dense prior with captions, on one tokenizer.

The pairs are those of the registries: a new model is among them at once, in the smallest size that
the fields below give it.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.data import build_source
from vqjax.errors import InputError
from vqjax.generation.run import Run
from vqjax.priors import PRIORS
from vqjax.runs.build import build_condition, check_config, data_settings
from vqjax.runs.workdir import write_condition, write_config
from vqjax.tokenizers import TOKENIZERS, build_tokenizer
from vqjax.training.loop import train_stage
from vqjax.training.stage import TrainingData
from vqjax.training.stage_kinds import build_stage

SIDE, GRID, CODES = 16, (4, 4), 16
# What makes models small, where they have such a field: all tokenizers are of f = 4.
SMALL = {
    "attention_factors": (4,),
    "block_size": 2,
    "demask_blocks": 1,
    "depths": (1,),
    "dim": 8,
    "embed_dim": 4,
    "grid_side": 4,
    "halo": 1,
    "head_dim": 8,
    "latent_width": 8,
    "multipliers": (1, 1, 1),
    "num_heads": 2,
    "num_layers": 1,
    "num_position_layers": 1,
    "num_res_blocks": 1,
    "patch_size": 4,
    "width": 8,
    "widths": (8,),
    "window": 2,
}


def small(name, registry):
    """The sub-config of a model."""
    fields = {field.name for field in dataclasses.fields(registry[name])}
    return ConfigDict({"name": name, **{k: v for k, v in SMALL.items() if k in fields}})


def small_tokenizer(name):
    model = small(name, TOKENIZERS)
    model.quantizer = ConfigDict({"num_codes": CODES, "code_dim": 4})
    return model


KINDS = {
    name: build_tokenizer("tokenizer.model", small_tokenizer(name)).token_kind
    for name in sorted(TOKENIZERS)
}
DENSE_TOKENIZERS = [name for name, kind in KINDS.items() if kind == "dense"]
PRIORS_OF_DENSE = sorted(n for n, cls in PRIORS.items() if cls.token_kind in ("dense", "any"))
PAIRS = [
    (tokenizer, prior)
    for tokenizer, kind in KINDS.items()
    for prior in sorted(PRIORS)
    if PRIORS[prior].token_kind in (kind, "any")
]


def config_of(images, tokenizer, prior="masked", condition="none"):
    """One step of both stages."""
    config = tiny.get_config(f"path={images},steps=1")
    config.condition.name = condition
    config.tokenizer.model = small_tokenizer(tokenizer)
    config.tokenizer.discriminator.model = ConfigDict({"name": "none"})
    stage = common.prior_stage(prior)
    for name in ("batch_size", "steps", "optimizer"):
        stage[name] = config.prior[name]
    stage.model = small(prior, PRIORS)
    config.prior = stage
    config.sampling = common.sampling(prior)
    config.sampling.batch_size = 4
    for name in ("tokenizer", "prior"):
        config[name].log_every = 1
        config[name].optimizer.warmup_steps = 0
    check_config(config)
    return config


def train(config, name, workdir):
    """Trains one stage as train.py does, on one device."""
    sources = [build_source(config.data.source, split, SIDE) for split in ("train", "validation")]
    condition = build_condition(config, sources[0])
    write_config(config, workdir)
    write_condition(workdir, condition)
    stage = build_stage(config, name, epath.Path(workdir), condition)
    data = TrainingData(data_settings(config), *sources, condition)
    train_stage(stage, data, tiny.one_device(), epath.Path(workdir) / name)


@functools.cache
def trained_tokenizer(name):
    """Images, and the workdir of a run of the tokenizer alone; once for all processes."""
    folder = Path(os.environ[tiny.SHARED]) / "pairs"
    images, workdir, done = folder / "images", folder / name, folder / f"{name}.done"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not images.exists():
            tiny.write_images(images)
            # Two of each image.
            names = sorted(file.relative_to(images) for file in images.rglob("*.png"))
            lines = [
                f"{name}\t{how} {name.parent.name}" for name in names for how in ("red", "new")
            ]
            (images / "captions.tsv").write_text("\n".join(lines))
    with filelock.FileLock(folder / f"{name}.lock"):
        if not done.exists():
            train(config_of(images, name), "tokenizer", workdir)
            done.touch()
    return images, workdir


def metrics_of(workdir, stage):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.parametrize("name", DENSE_TOKENIZERS)
def test_a_tokenizer_keeps_its_contract(name):
    """By shapes alone; its numbers are tested where its file is."""
    model = build_tokenizer("tokenizer.model", small_tokenizer(name))
    images = jax.ShapeDtypeStruct((3, SIDE, SIDE, 3), jnp.float32)

    def run(images):
        variables = model.init(jax.random.key(0), images)
        tokens = model.apply(variables, images, method="encode")
        return model.apply(variables, images), tokens

    (rebuilt, tokens, loss, metrics), encoded = jax.eval_shape(run, images)
    assert model.grid(SIDE, SIDE) == encoded.grid == tokens.grid == GRID
    assert rebuilt.shape == images.shape and rebuilt.dtype == jnp.float32
    assert encoded.codes.shape == encoded.positions.shape == (3, 16)
    assert loss.shape == () and all(value.shape == () for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["none", "class"])
@pytest.mark.parametrize(("tokenizer", "prior"), PAIRS)
def test_a_pair_is_trained_evaluated_and_sampled(tokenizer, prior, condition, tmp_path):
    images, source = trained_tokenizer(tokenizer)
    found = metrics_of(source, "tokenizer")
    assert all(np.isfinite(found[key]) for key in ("train/loss", "validation/psnr"))

    workdir = tmp_path / "run"
    config = config_of(images, tokenizer, prior, condition)
    config.tokenizer.use_from = str(source)
    train(config, "prior", workdir)
    found = metrics_of(workdir, "prior")
    # A prior may have positions to tell besides.
    assert 0 < found["train/loss"] < 2 * np.log(CODES) + np.log(GRID[0] * GRID[1])
    validation = [value for key, value in found.items() if key.startswith("validation/")]
    assert validation and np.all(np.isfinite(validation))

    run = Run(workdir, tiny.one_device())
    label = {"label": "discs"} if condition == "class" else {}
    drawn = run.sample(2, seed=1, **label)
    assert drawn.shape == (2, SIDE, SIDE, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, run.sample(2, seed=1, **label))
    assert run.steps == {"tokenizer": 1, "prior": 1}


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS_OF_DENSE)
def test_a_prior_is_trained_evaluated_and_guided_by_captions(prior, tmp_path):
    images, source = trained_tokenizer("vqgan")
    config = config_of(images, "vqgan", prior)
    config.data.source.captions = "captions.tsv"
    config.condition = ConfigDict({"name": "caption", "length": 6})
    config.prior.model.condition_dropout = 0.5
    config.sampling.guidance = 2.0
    config.tokenizer.use_from = str(source)
    check_config(config)
    train(config, "prior", tmp_path)
    found = metrics_of(tmp_path, "prior")
    assert 0 < found["train/loss"] < 3 * np.log(CODES)
    validation = [value for key, value in found.items() if key.startswith("validation/")]
    assert validation and np.all(np.isfinite(validation))

    run = Run(tmp_path, tiny.one_device())
    table = run.prior_variables["params"]["condition_embedding"]["position"]
    assert table.shape[0] == run.condition.length == 6
    drawn = run.sample(2, caption="Red discs", seed=1)
    assert drawn.shape == (2, SIDE, SIDE, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, run.sample(2, caption="red  discs", seed=1))
    for wrong in ({"label": "discs"}, {"label": 1}):
        with pytest.raises(InputError, match="this run is told a caption, not a label: give --cap"):
            run.sample(2, **wrong)
