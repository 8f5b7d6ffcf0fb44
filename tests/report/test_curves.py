"""Curves of the training's metrics."""

import json

import numpy as np

from vqjax.report import curves

NATS = "code_nats", "position_nats"


def test_curves_of_a_run_that_is_being_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "train/loss": 3.0, "train/new": 1}\n{"step": 4, "train/loss": null}\n'
        '{"step": 4, "validation/loss_at_0.5": 2.5}\n{"step": 6, "tra'
    )
    found = curves.read_metrics(file)
    assert found["train/loss"][0] == [2.0, 4.0] and np.isnan(found["train/loss"][1][1])
    assert curves.last(found, "validation/loss_at_0.5") == 2.5
    assert curves.last(found, "train/none") is None
    drawn = {chart.title: chart for chart in curves.charts("prior", found, start=None)}
    # A metric that nobody knew is drawn too.
    assert set(drawn) == {"Loss", "Loss without label smoothing, nats a token", "new"}
    assert "loss from 3 to 3" in drawn["Loss"].svg
    assert "0.5 masked from 2.5 to 2.5" in drawn["Loss without label smoothing, nats a token"].svg


def test_both_parts_of_a_loss_are_one_chart_in_training_and_held_out(tmp_path):
    """Paper 002, figure 6a."""
    file = tmp_path / "metrics.jsonl"
    values = {f"{s}/{n}": i for i, s in enumerate(("train", "validation")) for n in NATS}
    lines = [{"step": 2, **values, "validation/nats_per_token": 2, "train/code_accuracy": 0.5}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = curves.charts("prior", curves.read_metrics(file), start=None)
    drawn = {chart.title: chart.svg for chart in found}
    nats = "Loss without label smoothing, nats a token"
    assert set(drawn) == {nats, "Codes and positions, nats a token", "Accuracy"}
    for label in ("codes, training", "positions, held-out"):
        assert label in drawn["Codes and positions, nats a token"]
