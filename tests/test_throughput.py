import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]


# Other names of stages, a decoder stage, and a prior with a sampler that nobody knows.
OTHER = """
import sys
sys.path.append({tests!r})
import test_toy_prior as toy
from configs import common
toy.PRIORS["unigram"], toy.SAMPLERS["unigram"] = toy.UnigramPrior, toy.SAMPLER

def get_config():
    config = toy.get_config("path={images}")
    config.codes, config.words = config.tokenizer, config.prior
    del config.tokenizer, config.prior
    config.finer = common.decoder_stage(config.codes)
    config.finer.tokenizer = config.words.tokenizer = "codes"
    config.stages = ("codes", "finer", "words")
    return config
"""


def other(tmp_path, images):
    file = tmp_path / "other.py"
    file.write_text(OTHER.format(tests=str(ROOT / "tests"), images=images))
    return f"--config={file}"


def run(*args, ok=True, **environment):
    """What the benchmark prints; its error line if not `ok`."""
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "throughput.py", *args],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == (0 if ok else 2), process.stderr[-2000:]
    return process.stdout if ok else process.stderr.strip()


def throughput(*args, **environment):
    """The benchmark's table by program, each row by its column."""
    return table_of(run(*args, **environment))


def table_of(printed):
    lines = [re.split(r"\s{2,}", line) for line in printed.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[0] == "program")
    return {row[0]: dict(zip(lines[start], row, strict=True)) for row in lines[start + 1 :]}


def number(text):
    return float(text.replace(",", ""))


@pytest.mark.slow
def test_programs_are_measured():
    programs = ["encode", "decode", "prior_step", "prior_step_on_tokens", "sample"]
    table = throughput(
        "--config=tests/tiny.py",
        f"--what={','.join(programs)}",
        "--repeats=2",
        "--batch_size=4",
        "--config.prior.model.num_layers=1",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    assert list(table) == programs
    for row in table.values():
        assert (row["dtype"], row["batch"], row["allocator MiB"]) == ("float32", "4", "-")
        assert number(row["call ms"]) == pytest.approx(4e3 / number(row["images/s"]), abs=0.06)
        assert number(row["compile s"]) > 0
    # A step takes and gives back a state: weights, their average and Adam's two moments.
    step, sample = (number(table[name]["program MiB"]) for name in ("prior_step", "sample"))
    assert step > 4 * sample > 0


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("--what=encode,train", "--what has 'train': valid: decode, encode"),
        ("--batch_size=0", "--batch_size=0: at least 1"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line(arg, message):
    error = run("--config=tests/tiny.py", arg, ok=False)
    assert message in error and "\n" not in error


@pytest.mark.slow
def test_programs_are_those_of_the_stages(tmp_path):
    """A step for each, whatever its name, and one image's way through the last of them."""
    error = run(other(tmp_path, tmp_path), "--what=step", ok=False)
    steps = "words_step, words_step_on_tokens"
    assert f"valid: codes_step, decode, encode, finer_step, sample, {steps}" in error


@pytest.mark.slow
def test_any_prior_is_measured_with_its_condition(tmp_path):
    config = other(tmp_path, tiny.write_images(tmp_path / "images"))
    what = "--what=words_step,sample"
    printed = run(config, what, "--repeats=1", "--batch_size=2", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert ", 3 classes\n" in printed and "measured without" not in printed
    assert "words: unigram, 160 parameters, 16 tokens on 4x4 of 32 codes" in printed
    assert "sample, without decoding: sharpness=1.0" in printed
    table = table_of(printed)
    assert list(table) == ["words_step", "sample"]
    assert all(number(row["images/s"]) > 0 and row["batch"] == "2" for row in table.values())


@pytest.mark.slow
def test_classes_that_cannot_be_counted_are_left_out_and_the_head_says_so(tmp_path):
    what = "--what=sample"
    printed = run(other(tmp_path, tmp_path / "nowhere"), what, "--repeats=0")
    assert "measured without its condition: the data set is not there" in printed
    assert "words: unigram, 64 parameters" in printed and ", class-conditional\n" in printed


@pytest.mark.slow
def test_scanned_prior_compiles_in_a_minute(capsys):
    seconds = {}
    for scan in (True, False):
        table = throughput(
            "--config=configs/ffhq_effvqgan.py",
            "--what=prior_step",
            "--batch_size=8",
            "--repeats=0",
            f"--config.prior.model.scan={scan}",
        )
        seconds[scan] = number(table["prior_step"]["compile s"])
    with capsys.disabled():
        print(f"\n24-layer prior's train step: scanned {seconds[True]} s, not {seconds[False]} s")
    assert seconds[True] < 60
