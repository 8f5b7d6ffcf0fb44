"""What a user can give that is wrong ends in one line that says so, and status 2."""

import json
import shutil

import command_runs
import numpy as np
import pytest
import tiny

from vqjax.conditions import ClassCondition
from vqjax.parallel import placed
from vqjax.runs.record import read_starts
from vqjax.runs.workdir import read_condition, write_condition

OPENMOJI = "--config=configs/openmoji_effvqgan.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def run(tmp_path):
    """A copy of the finished run."""
    shutil.copytree(tiny.finished_run().workdir, tmp_path / "run")
    return tmp_path / "run"


def error(capsys, name, *args, status=2):
    """The one line that a program ends with."""
    assert command_runs.call(name, *args) == status
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def train_error(capsys, workdir, *args, status=2):
    return error(capsys, "train", f"--workdir={workdir}", *args, status=status)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--config.tokenizer.stepz=5"], "no 'stepz' in config.tokenizer; did you mean 'steps'?"),
        (["--config.prior.model.halos=5"], "no 'halos' in config.prior.model; did you mean 'halo'"),
        (["--config.seed.x=5"], "config.seed is a value and has no keys"),
        (["--config.seed"], "write --config.seed=value"),
        (["--config.tokenizer.steps=many"], "steps"),
        (["--config.tokenizer.model.name=vqvae"], "valid: efficient_vqgan, mqvae, seqgan"),
        (["--config.prior.model.name=gpt"], "valid: autoregressive, masked, multigrained"),
        (
            ["--config.tokenizer.model.quantizer.learning=emma"],
            "did you mean 'ema'? valid: ema, grad",
        ),
        (["--config.tokenizer.model.dtype=bf16"], "valid: bfloat16, float32"),
        (["--config.tokenizer.loss.perceptual_net=vgg19"], "valid: alexnet, vgg16"),
        (["--config.tokenizer.optimizer.name=sgd"], "valid: adam, adamw"),
        (["--config.tokenizer.optimizer.schedule=cosin"], "did you mean 'cosine'?"),
        (["--config.stages=tokeniser"], "did you mean 'tokenizer'? valid: prior, tokenizer"),
        (["--config.profile=10"], "config.profile=10: START:STOP is needed, like 10:13"),
        (
            ["--config.prior.use=bets"],
            "prior.use='bets': did you mean 'best'? valid: best, last",
        ),
        (["--config.prior.log_every=0"], "config.prior.log_every=0: at least 1 is needed"),
        (
            ["--config.prior.ema_decay=1.0"],
            "prior.ema_decay=1.0: a number in [0, 1) is needed",
        ),
        (["--config.prior.model.num_heads=5"], "config.prior.model.num_heads=5: a divisor of dim="),
        (
            ["--config.tokenizer.model.patch_size=3"],
            "tokenizer.model.patch_size=3: a power of two",
        ),
        (["--config.data.resolution=36"], "the nearest that works is 32 or 48"),
        (["--config.sampling.temperature=0.0"], "sampling.temperature=0.0: above 0 is needed"),
        (
            ["--config.condition.name=text"],
            "config.condition.name='text': valid: caption, class, none",
        ),
        (["--config.prior.tokenizer=codes"], "config.prior.tokenizer='codes': valid: tokenizer"),
        (["--config.prior.kind=gan"], "config.prior.kind='gan': valid: decoder, prior, tokenizer"),
        (["--config.data.crop=middle"], "config.data.crop='middle': valid: center, random"),
        (["--config.data.min_scale=0.0"], "min_scale=0.0: a number in (0, 1] is needed"),
        (
            ["--config.mesh.data=3", "--config.mesh.fsdp=2"],
            "data 3 x fsdp 2 x tensor 1 = 6, but th",
        ),
        (
            ["--config.prior.batch_size=12"],
            "a batch of 12 does not divide over mesh data 8 x fsdp 1",
        ),
        (["--config.prior.data.in_memory=-1"], "config.prior.data.in_memory=-1: 0 or more is need"),
        (["--config.prior.microbatches=5"], "does not divide into microbatches=5"),
        (["--num_processes=2"], "give all three to every process"),
        (["--coordinater=x"], "coordinater"),
        (["workdir"], "unexpected argument 'workdir'"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_wrong_setting(args, expected, capsys, tmp_path):
    """Also of the second stage, before the first is trained and before anything is written."""
    workdir = tmp_path / "run"
    assert expected in train_error(capsys, workdir, OPENMOJI, *args)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/openmoji.py", "configs/openmoji.py"),
        ("configs/openmoji_effvqgan.py:reso=64", "did you mean 'res'? valid: f, gan, res, size"),
        ("configs/openmoji_effvqgan.py:f=3", "f=3: valid: 4, 8, 16"),
        ("configs/openmoji_effvqgan.py:res=big", "res takes a value of type int, like res=32"),
    ],
)
def test_wrong_config_file(config, expected, capsys, tmp_path):
    assert expected in train_error(capsys, tmp_path / "run", f"--config={config}")


def test_required_flags(capsys, tmp_path):
    assert "--config" in error(capsys, "train", f"--workdir={tmp_path}")
    assert "--workdir" in error(capsys, "train", OPENMOJI)
    assert "--workdir" in error(capsys, "sample")


def test_workdir_is_a_file(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert "this is a file" in train_error(capsys, file, OPENMOJI)
    assert f"{file} is not the folder of a run" in error(capsys, "sample", f"--workdir={file}")


def test_unknown_source(capsys, tmp_path):
    message = train_error(capsys, tmp_path, OPENMOJI, "--config.data.source.name=openmojis")
    assert "did you mean 'openmoji'? valid: folder, openmoji, tfds" in message


def test_empty_folder_of_images(capsys, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    config = f"--config=tests/tiny.py:path={tmp_path / 'images'}"
    assert "has no images in it" in train_error(capsys, tmp_path / "run", config)


class Trained(Exception):
    """In place of the training, which these tests don't need."""


@pytest.fixture
def no_training(monkeypatch):
    def train_stage(*args):
        raise Trained

    module = command_runs._load("train")[0]
    monkeypatch.setattr(module, "train_stage", train_stage)


@pytest.fixture
def config_flag():
    return f"--config=tests/tiny.py:path={tiny.finished_run().config.data.source.path}"


def test_workdir_of_another_config(capsys, run, config_flag, no_training):
    changes = ["--config.tokenizer.optimizer.learning_rate=0.5", "--config.prior.model.dim=64"]
    before = tiny.contents(run)
    message = train_error(capsys, run, config_flag, *changes)
    assert "tokenizer.optimizer.learning_rate was 0.003, is now 0.5" in message
    assert "prior.model.dim was 32, is now 64" in message
    assert message.count(" was ") == 2 + 1
    assert "--accept_config_changes" in message
    assert tiny.contents(run) == before

    with pytest.raises(Trained):
        command_runs.call(
            "train", config_flag, f"--workdir={run}", "--accept_config_changes", *changes
        )
    assert json.loads((run / "config.json").read_text())["prior"]["model"]["dim"] == 64


def test_settings_that_may_change(run, config_flag, no_training):
    free = [
        "data.workers=2",
        "profile=1:3",
        "mesh.fsdp=2",
        "sampling.temperature=0.5",
        "stages=prior",
    ]
    free += [f"prior.{key}=7" for key in ("log_every", "eval_every", "eval_images")]
    free += [
        "prior.data.in_memory=7",
        "prior.checkpoint_every=7",
        "prior.keep_checkpoints=7",
        "prior.use=best",
    ]
    with pytest.raises(Trained):
        command_runs.call(
            "train", config_flag, f"--workdir={run}", *(f"--config.{x}" for x in free)
        )
    (start,) = read_starts(run)
    assert "--config.prior.use=best" in start["command"]
    assert start["from_step"] == {"prior": 12, "tokenizer": 12}


def test_kept_tokens_may_be_named_at_a_later_start(capsys, run, config_flag):
    """They are made by the tokenizer of the run, so not at its first."""
    message = train_error(capsys, run, config_flag, "--config.prior.data.tokens=/nowhere")
    assert "=/nowhere: there is no tokens.json in that folder" in message


def test_a_start_with_another_condition(capsys, run, config_flag, no_training):
    """A folder of images that was renamed, say: there are as many classes, but other ones."""
    others = ClassCondition(("checks", "dots", "stripes", "waves"))
    write_condition(run, others)
    before = tiny.contents(run)
    message = train_error(capsys, run, config_flag)
    assert "class_names.1 was dots, is now discs; condition.class_names.3 was waves" in message
    assert "--accept_config_changes" in message and tiny.contents(run) == before
    with pytest.raises(Trained):
        command_runs.call("train", config_flag, f"--workdir={run}", "--accept_config_changes")
    assert read_condition(run) == tiny.CONDITION


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "condition.json is not there, but the run's condition is 'class'"),
        ("{", "condition.json is not that of a condition (JSONDecodeError"),
        ('{"name": "class"}', "condition.json is not that of a condition (TypeError"),
        ("[]", "condition.json is not that of a condition"),
    ],
)
def test_a_condition_that_is_lost_or_broken(content, expected, capsys, run, config_flag):
    """No sample is drawn without what the prior has to be told."""
    (run / "condition.json").unlink()
    if content is not None:
        (run / "condition.json").write_text(content)
        assert expected in train_error(capsys, run, config_flag)
    assert expected in error(capsys, "sample", f"--workdir={run}")
    assert not (run / "samples").exists()


def test_unreadable_config_in_workdir(capsys, run, config_flag):
    (run / "config.json").write_text("{")
    assert "config.json is not valid JSON" in train_error(capsys, run, config_flag)
    assert "config.json is not valid JSON" in error(capsys, "sample", f"--workdir={run}")


def test_tokens_that_are_not_there(capsys, tmp_path, config_flag):
    """Before the tokenizer is trained, whose tokens they should be."""
    flag = "--config.prior.data.tokens=/nowhere"
    message = train_error(capsys, tmp_path / "run", config_flag, flag)
    assert message.startswith("error: config.prior.data.tokens=/nowhere: there is no tokens.json")
    assert not (tmp_path / "run").exists()


def test_prior_without_a_tokenizer(capsys, tmp_path, config_flag):
    message = train_error(capsys, tmp_path / "run", config_flag, "--config.stages=prior")
    assert f"there is no trained tokenizer in {tmp_path / 'run'}" in message
    assert "run train.py" in message
    assert "--config.tokenizer.use_from" in message


def test_tokenizer_of_another_workdir(capsys, tmp_path, run, config_flag, monkeypatch):
    """It is taken as it was trained there, and nothing is trained or written in its place."""
    flags = [config_flag, f"--config.tokenizer.use_from={run}", "--config.tokenizer.ema_decay=0.0"]
    taken = {}

    def train_stage(stage, data, mesh, folder, profile):
        taken[folder] = stage.load_frozen(placed(stage.frozen_shapes(), mesh))

    monkeypatch.setattr(command_runs._load("train")[0], "train_stage", train_stage)
    assert command_runs.call("train", f"--workdir={tmp_path / 'other'}", *flags) == 0
    assert list(taken) == [tmp_path / "other" / "prior"]
    ema = tiny.final_state(tiny.finished_run().config, "tokenizer", run).model.ema
    kernel = taken[tmp_path / "other" / "prior"]["params"]["encoder"]["to_latent"]["kernel"]
    np.testing.assert_array_equal(kernel, ema["encoder"]["to_latent"]["kernel"])

    window = "--config.tokenizer.model.window=4"
    message = train_error(capsys, tmp_path / "other2", *flags, window)
    assert "tokenizer.model.window was 2, is now 4" in message
    nowhere = f"--config.tokenizer.use_from={tmp_path / 'nowhere'}"
    message = train_error(capsys, tmp_path / "other3", config_flag, nowhere)
    assert f"{tmp_path / 'nowhere'} is not the folder of a run" in message


def test_sampling_where_there_is_no_run(capsys, tmp_path, run):
    (tmp_path / "empty").mkdir()
    message = error(capsys, "sample", f"--workdir={tmp_path / 'empty'}")
    assert "is not the folder of a run: it has no config.json" in message
    message = error(capsys, "sample", f"--workdir={tmp_path / 'runs'}")
    assert f"(there is {run})" in message


@pytest.mark.parametrize("missing", ["tokenizer", "prior"])
def test_sampling_before_the_end_of_training(missing, capsys, run):
    shutil.rmtree(run / missing)
    message = error(capsys, "sample", f"--workdir={run}")
    assert f"there is no trained {missing} in {run}" in message


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--label=4", "give a number from 0 to 2, or one of: checks, discs, stripes"),
        ("--label=cubes", "give a number from 0 to 2, or one of: checks, discs, stripes"),
        ("--temperature=0", "config.sampling.temperature=0.0: above 0 is needed"),
        ("--top_p=1.5", "config.sampling.top_p=1.5: a number in (0, 1] is needed"),
        ("--top_k=-1", "config.sampling.top_k=-1: 0 or more is needed"),
        ("--steps=0", "config.sampling.steps=0: at least 1 is needed"),
        ("--num_images=0", "at least 1 is needed"),
        ("--temperature=hot", "temperature"),
    ],
)
def test_wrong_sampling_setting(flag, expected, capsys):
    workdir = tiny.finished_run().workdir
    assert expected in error(capsys, "sample", f"--workdir={workdir}", flag)


def test_sampling(capsys, tmp_path, run):
    """As many images as were asked for, of the class asked for; the same for the same seed."""
    for folder in ("a", "b"):
        flags = ["--num_images=3", "--batch_size=2", "--label=discs", f"--out={tmp_path / folder}"]
        assert command_runs.call("sample", f"--workdir={run}", *flags) == 0
    a, b = tiny.contents(tmp_path / "a"), tiny.contents(tmp_path / "b")
    assert a == b
    assert set(a) == {"00000.png", "00001.png", "00002.png", "grid.png", "settings.json"}
    settings = json.loads(a["settings.json"])
    assert settings["label"] == "discs"
    assert settings["num_images"] == 3


def test_sampling_of_a_run_that_is_half_trained_says_so(capsys, tmp_path, run):
    shutil.rmtree(run / "prior" / "checkpoints" / "12")
    assert command_runs.call("sample", f"--workdir={run}", f"--out={tmp_path / 'out'}") == 0
    said = capsys.readouterr().err
    assert "is at step 9 of 12: its training is not finished" in said
