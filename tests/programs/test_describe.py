"""vqjax describe: a config by shapes alone; the list of commands."""

import json
import subprocess
import sys

import command_runs
import pytest
import tiny

from vqjax.programs import COMMANDS
from vqjax.runs.description import as_text, describe


def described(capsys, *flags):
    assert command_runs.call("describe", *flags, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_full_size_config(capsys):
    """Numbers of the config's docstring, without data, weights or memory."""
    found = described(capsys, "--config=configs/ffhq_effvqgan.py:f=8")
    tokenizer, prior = found["stages"]
    assert (tokenizer["name"], tokenizer["model"]) == ("tokenizer", "efficient_vqgan")
    assert tokenizer["parameters"] == 10_769_139
    assert tokenizer["latent_grid"] == [32, 32] and tokenizer["tokens_per_image"] == 1024
    assert tokenizer["steps"] == 187_500 and tokenizer["discriminator"] == "projected"
    assert prior["parameters"] == 184_002_816 and prior["decoder"] == "tokenizer"
    assert prior["num_codes"] == 1024 and prior["batch_size"] == 256


def test_a_run_and_a_config_of_three_stages(capsys):
    workdir = tiny.finished_run().workdir
    found = described(capsys, f"--workdir={workdir}")
    assert [stage["kind"] for stage in found["stages"]] == ["tokenizer", "prior"]
    assert found["condition"] == {"name": "class", "ids": 3, "length": 1}
    for stage in found["stages"]:
        table = (workdir / stage["name"] / "parameters.txt").read_text()
        assert f"Total: {stage['parameters']:,}" in table

    config = tiny.finished_run().config.copy_and_resolve_references()
    config.decoder = tiny.common.decoder_stage(config.tokenizer)
    decoder = describe(config, tiny.CONDITION)["stages"][1]
    tokenizer = found["stages"][0]
    # A codebook by moving averages is state, not parameters.
    assert decoder["parameters"] + decoder["frozen_parameters"] == tokenizer["parameters"]
    text = as_text(describe(config, tiny.CONDITION))
    assert f"decoder: efficient_vqgan, {decoder['parameters']:,} parameters" in text
    assert "3 classes" in text.splitlines()[0]


def test_a_conditional_prior_whose_data_is_not_there(capsys):
    found = described(capsys, "--config=configs/imagenet_effvqgan.py")
    assert "the data set is not there" in found["stages"][1]["note"]
    assert found["condition"]["name"] == "class" and found["classes"] == 0
    assert as_text(found).startswith("tfds imagenet2012, 256x256 pixels, class-conditional\n")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give --config=<file>, or --workdir=<folder of a run>"),
        (["--workdir=nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_wrong_input(flags, expected, capsys):
    assert command_runs.call("describe", *flags) == 2
    assert expected in capsys.readouterr().err


def test_commands_are_listed_and_helped():
    """python -m vqjax without importing JAX for it; one command's help names its flags."""

    def run(*arguments):
        process = [sys.executable, "-m", "vqjax", *arguments]
        return subprocess.run(process, cwd=command_runs.ROOT, capture_output=True, text=True)

    listed = run()
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in COMMANDS)
    wrong = run("sampel")
    assert wrong.returncode == 2 and "did you mean 'sample'?" in wrong.stderr
    helped = run("describe", "--help")
    assert helped.returncode == 0
    assert "--workdir: Folder of a run" in helped.stdout and "--json" in helped.stdout
