"""A prior that is trained on tokens made before learns what it learns from images."""

import json
import os
import shutil
import socket
import subprocess
import sys

import command_runs
import jax
import numpy as np
import optax
import pytest
import tiny
from etils import epath

from vqjax.data import build_source
from vqjax.data.token_files import FILE, TokensOnDisk
from vqjax.errors import InputError
from vqjax.parallel import placed
from vqjax.runs.build import data_settings
from vqjax.runs.workdir import write_config
from vqjax.training import loop, token_data
from vqjax.training.stage import TrainingData

SHARD = 10


def config_of(**settings):
    """The finished run's, with augmentation that can be enumerated: images are mirrored."""
    config = tiny.finished_run().config.copy_and_resolve_references()
    config.data.crop = "center"
    config.prior.data.update(settings)
    return config


@pytest.fixture
def workdir(tmp_path):
    """The finished tokenizer in a run of its own, without a prior."""
    shutil.copytree(tiny.finished_run().workdir / "tokenizer", tmp_path / "run" / "tokenizer")
    write_config(config_of(), tmp_path / "run")
    return tmp_path / "run"


def tokenize(workdir, *args):
    return command_runs.call(
        "tokenize", f"--workdir={workdir}", f"--shard_images={SHARD}", "--batch_size=16", *args
    )


def losses(workdir):
    lines = (workdir / "prior" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "loss" in k} for line in lines]


def train_prior(config, workdir, name="run"):
    """Trains the prior in a copy of a run; the folder of the copy."""
    copy = workdir.parent / name
    if copy != workdir:
        shutil.copytree(workdir, copy)
    tiny.train(config, "prior", copy)
    return copy


def assert_same_losses(a, b):
    for one, two in zip(losses(a), losses(b), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def data_of(config):
    sources = (build_source(config.data.source, s, 16) for s in ("train", "validation"))
    return TrainingData(data_settings(config), *sources, tiny.CONDITION)


@pytest.mark.slow
def test_from_images_from_memory_and_from_disk_it_is_one_training(workdir, caplog):
    config = config_of(in_memory=0)
    images = train_prior(config, workdir, "images")
    assert "kept in memory" not in caplog.text
    with caplog.at_level("INFO", logger="vqjax"):
        memory = train_prior(config_of(), workdir, "memory")
    assert "tokens of 24 images, 2 of each, made in" in caplog.text
    assert_same_losses(memory, images)

    assert tokenize(workdir) == 0
    on_disk = config_of(tokens=str(workdir / "tokens" / "tokenizer"), in_memory=0)
    disk = train_prior(on_disk, workdir, "disk")
    assert_same_losses(disk, images)

    # Stopped after step 9, it goes on to the bit.
    for folder, settings in ((memory, config_of()), (disk, on_disk)):
        unbroken = tiny.final_state(settings, "prior", folder)
        shutil.rmtree(folder / "prior" / "checkpoints" / "12")
        tiny.train(settings, "prior", folder)
        state = tiny.final_state(settings, "prior", folder)
        jax.tree.map(np.testing.assert_array_equal, state, unbroken)


def test_memory_is_taken_where_it_can_be_and_pays():
    config = config_of()
    source, settings = build_source(config.data.source, "train", 16), data_settings(config)
    stage = tiny.make_stage(config, "prior", "")

    def fits(views=2, most_bytes=2**20, images=49):
        form = token_data.token_form(stage.tokenizer, 16, views)
        return token_data.fits_memory(source, settings, form, most_bytes, images)

    size = 24 * 2 * 16 * 2
    assert fits(most_bytes=size) and not fits(most_bytes=size - 1)
    assert not fits(images=48)
    settings = data_settings(tiny.finished_run().config)
    assert settings.crop == "random" and not fits() and not fits(views=1)


def test_tokenizing_goes_on_where_it_was_killed(workdir, monkeypatch, capsys):
    assert tokenize(workdir, f"--out={workdir}/whole") == 0
    whole = tiny.contents(workdir / "whole")
    assert set(whole) == {FILE, *(f"tokens-0000{i}-of-00003.array_record" for i in range(3))}

    def killed(*args):
        for row, image in enumerate(token_data.tokenized_images(*args)):
            if row == SHARD + 2:
                raise KeyboardInterrupt
            yield image

    program = command_runs._load("tokenize")[0]
    with monkeypatch.context() as patch:
        patch.setattr(program, "tokenized_images", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(workdir, f"--out={workdir}/broken")
    first = workdir / "broken" / "tokens-00000-of-00003.array_record"
    assert list((workdir / "broken").glob("tokens-*")) == [first]
    before = first.stat().st_mtime_ns
    assert tokenize(workdir, f"--out={workdir}/broken") == 0
    assert first.stat().st_mtime_ns == before
    assert tiny.contents(workdir / "broken") == whole
    # Another tokenizer's, or of other views, they would be half and half.
    capsys.readouterr()
    assert tokenize(workdir, f"--out={workdir}/broken", "--shard_images=9") == 2
    assert "broken has tokens of something else: shard_images was 10, is now 9" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_processes_write_what_one_writes(workdir):
    """The program itself, each process with two devices of its own."""
    assert tokenize(workdir, f"--out={workdir}/one") == 0
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = [f"--workdir={workdir}", f"--out={workdir}/two", f"--shard_images={SHARD}"]
    flags += ["--batch_size=16", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "vqjax", "tokenize", *flags, f"--process_id={i}"],
            cwd=command_runs.ROOT,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [command_runs.finish(process) for process in pair]
    assert "2 of 3 shards to be written here" in said[0] and "shards to be" not in said[1]
    assert tiny.contents(workdir / "two") == tiny.contents(workdir / "one")


def test_views_of_random_crops(workdir, capsys):
    config = tiny.finished_run().config
    write_config(config, workdir)
    assert tokenize(workdir, "--views=3") == 0
    tokens = TokensOnDisk(workdir / "tokens" / "tokenizer", "tokens")
    assert tokens.record.form.views == 3 and tokens[23]["codes"].shape == (3, 16)
    codes = np.stack([tokens[i]["codes"] for i in range(len(tokens))])
    assert (codes[:, 0] != codes[:, 1]).any() and (codes[:, 1] != codes[:, 2]).any()
    assert tokens[3]["label"] == build_source(config.data.source, "train", 16)[3]["label"]
    write_config(config_of(), workdir)
    assert tokenize(workdir, "--views=3") == 2
    assert "--views=3: config.data makes 2 of each image" in capsys.readouterr().err
    assert tokenize(workdir, "--stage=discriminator") == 2
    assert "--stage=discriminator: valid: prior, tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.flip": False}, r"data\.flip was True, is now False"),
        ({"data.crop": "random"}, r"data\.crop was center, is now random; data\.min_scale was not"),
        ({"data.resolution": 32}, r"data\.resolution was 16, is now 32"),
        ({"data.source.train_folder": "validation"}, r"data\.images was 24, is now 7"),
        ({"tokenizer.model.quantizer.num_codes": 64}, r"tokenizer\.model\.quantizer\.num_codes"),
        ({"prior.data.tokens": "/nowhere"}, r"=/nowhere: there is no tokens\.json in that folder"),
        ({"prior.data.tokens": "gs://bucket/tokens"}, r"config\.prior\.data\.tokens=gs://bucket"),
    ],
    ids=str,
)
def test_tokens_of_something_else_are_refused_before_anything_begins(change, message, workdir):
    folder = workdir / "tokens" / "tokenizer"
    assert tokenize(workdir) == 0
    config = config_of(tokens=str(folder))
    tiny.make_stage(config, "prior", workdir).check_data(data_of(config))
    config.update_from_flattened_dict(change)
    # It does not take the models: the data is what is looked at.
    with pytest.raises(InputError, match=message) as e:
        token_data.open_tokens(config, "prior", data_of(config).train)
    assert "\n" not in str(e.value)


def test_tokens_of_another_tokenizer_are_refused(workdir):
    """The same tokenizer three steps earlier."""
    assert tokenize(workdir) == 0
    config = config_of(tokens=str(workdir / "tokens" / "tokenizer"))
    shutil.rmtree(workdir / "tokenizer" / "checkpoints" / "12")
    message = r"tokenizer\.weights was sha256 \w+, is now sha256 \w+\. Write its own by vqjax"
    with pytest.raises(InputError, match=message):
        tiny.train(config, "prior", workdir)


def test_a_config_without_the_setting_has_its_default(tmp_path):
    """One that was made before there was one."""
    config = tiny.finished_run().config.copy_and_resolve_references()
    del config.prior.data
    assert tiny.make_stage(config, "prior", tmp_path).tokens_from.tokens == ""


@pytest.mark.slow
def test_encoding_in_microbatches_is_that_of_the_whole_batch(workdir):
    """The update of images in microbatches, and that of their tokens, made all at once."""
    config = config_of()
    config.prior.microbatches = 4
    stage = tiny.make_stage(config, "prior", epath.Path(workdir))
    stage.optimizer = optax.sgd(1.0)
    frozen = stage.load_frozen(placed(stage.frozen_shapes(), tiny.one_device()))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    condition = np.arange(8, dtype=np.int32)[:, None] % len(tiny.CLASSES)
    tokens = jax.jit(stage._encode)(frozen, images)
    in_parts = stage.encode_in_parts(frozen, images)
    jax.tree.map(np.testing.assert_array_equal, in_parts, tokens)

    state = jax.jit(stage.init)(jax.random.key(0))
    step = jax.jit(stage.train_step)
    outcomes = [
        step(state, frozen, {**batch, "condition": condition}, stage.training_key)
        for batch in ({"image": images}, {"codes": tokens.codes})
    ]
    (one, metrics), (two, wanted) = outcomes
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(one.model.params), jax.tree.leaves(two.model.params), strict=True
    ):
        np.testing.assert_allclose(x, y, 1e-4, 1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_microbatches_bound_the_memory_of_encoding():
    """Of a stage whose encoder is what takes memory."""
    config = config_of()
    config.tokenizer.model.update({"widths": (64,), "mlp_ratio": 64})
    config.prior.model.update({"num_layers": 1, "query_blocks_per_image": 1})
    config.prior.batch_size = 32
    mesh, planned = tiny.one_device(), {}
    for microbatches in (1, 4):
        config.prior.microbatches = microbatches
        stage = tiny.make_stage(config, "prior", "")
        batch = loop.batch_shapes(32, 16, 1, mesh)
        state, frozen = loop.abstract_state(stage, mesh), placed(stage.frozen_shapes(), mesh)
        step = jax.jit(stage.train_step).lower(state, frozen, batch, stage.training_key).compile()
        encode = jax.jit(stage._encode).lower(frozen, batch["image"]).compile()
        planned[microbatches] = step.memory_analysis().temp_size_in_bytes
    assert encode.memory_analysis().temp_size_in_bytes > planned[1] / 2
    assert planned[4] < planned[1] / 2
