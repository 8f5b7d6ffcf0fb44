"""The benchmark of sampling code by code, at small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_table_is_consistent():
    sizes = ["--layers=2", "--dim=96", "--side=4", "--codes=32", "--batch_size=3", "--repeats=2"]
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "autoregressive.py", *sizes],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    head, _, *rows, last = process.stdout.splitlines()
    assert "2 layers of 96" in head and "16 codes of 32, batch 3" in head
    table = {
        row[:20].strip(): [float(x.replace(",", "")) for x in row[20:].split()] for row in rows
    }
    assert list(table) == ["weights read once", "with the cache", "prefix recomputed"]
    read = table["weights read once"][0]
    for milliseconds, rate, ratio, compiling, mib in table.values():
        # Numbers of two decimals.
        assert abs(rate * milliseconds / 3e3 - 1) < 0.006 / milliseconds + 0.001
        assert abs(ratio - milliseconds / read) < 0.01 + 0.02 * ratio / read
        assert compiling > 0 and mib > 0
    assert "the cache is worth a factor of" in last
