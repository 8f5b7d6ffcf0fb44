"""The benchmark of what a mask costs, at small size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_prediction_is_the_sum_of_its_parts():
    sizes = ["--side=16", "--width=32", "--blocks=1", "--batch_size=2", "--repeats=1"]
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "masking.py", *sizes],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    head, _, *rows, last = process.stdout.splitlines()
    assert "4 cells, width 32, 1 blocks, mask ratio 0.25" in head
    table = {
        row[:20].strip(): [float(x.replace(",", "")) for x in row[20:].split()] for row in rows
    }
    assert list(table) == ["VQGAN", "its middle", "de-mask module", "MQ-VAE"]
    (vqgan, *_), (middle, *_), (demask, *_), (mqvae, *_) = table.values()
    predicted, ratio, times = map(float, re.findall(r"[\d.]+", last)[:3])
    assert abs(predicted - (vqgan - middle + demask)) < 0.1
    assert abs(ratio - mqvae / predicted) < 0.02 and abs(times - mqvae / vqgan) < 0.02
    assert all(gflop > 0 and mib > 0 for _, gflop, mib in table.values())
