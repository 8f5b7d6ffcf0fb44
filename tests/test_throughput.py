import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def throughput(*args, ok=True):
    """The benchmark's table by program, each row by its column; its error line if not `ok`."""
    # One device, and no cache, which would hide the time of a compile.
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "throughput.py", *args],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == (0 if ok else 2), process.stderr[-2000:]
    if not ok:
        return process.stderr.strip()
    lines = [re.split(r"\s{2,}", line) for line in process.stdout.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[0] == "program")
    return {row[0]: dict(zip(lines[start], row, strict=True)) for row in lines[start + 1 :]}


def number(text):
    return float(text.replace(",", ""))


def test_every_program_has_a_row():
    table = throughput(
        "--config=tests/tiny.py", "--repeats=2", "--batch_size=4", "--config.sampling.steps=1"
    )
    assert list(table) == ["encode", "decode", "tokenizer_step", "prior_step", "sample"]
    for row in table.values():
        assert (row["dtype"], row["batch"], row["allocator MiB"]) == ("float32", "4", "-")
        milliseconds, speed = number(row["call ms"]), number(row["images/s"])
        assert speed * milliseconds == pytest.approx(4 * 1e3, rel=0.1)
        assert number(row["compile s"]) > 0
    # A step holds Adam's two moments, and gives back a state beside the one that it takes.
    step, encode = (number(table[name]["program MiB"]) for name in ("tokenizer_step", "encode"))
    assert step > 6 * encode > 0


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("--what=encode,train", "--what has 'train': valid: encode, decode"),
        ("--batch_size=0", "--batch_size=0: at least 1"),
        ("--repeats=-1", "--repeats=-1: 0 (only compile) or more"),
        ("--config.prior.model.dims=3", "no 'dims' in config.prior.model"),
    ],
)
def test_bad_input_is_one_line(arg, message):
    error = throughput("--config=tests/tiny.py", arg, ok=False)
    assert message in error and "\n" not in error


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
