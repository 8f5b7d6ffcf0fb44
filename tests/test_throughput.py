import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def throughput(*args, ok=True, **environment):
    """The benchmark's table by program, each row by its column; its error line if not `ok`."""
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
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


@pytest.mark.slow
def test_programs_are_measured():
    programs = ["encode", "decode", "prior_step", "sample"]
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
