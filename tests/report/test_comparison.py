"""Pictures of several runs: titles over their columns, curves and distances on their axes."""

import io

import numpy as np
import pytest
from PIL import Image

from vqjax.generation.predictions import Predictions
from vqjax.report import comparison
from vqjax.report.comparison import Distance, Tradeoff

HEADER = 2 * comparison._LINE


def picture(names, side=64, count=2):
    """White images, so that all that is dark is titles."""
    white = np.full((count, side, side, 3), 255, np.uint8)
    runs = {name: Predictions(white, white, 0.0, 0.0, 0.0) for name in names}
    return comparison.predictions_picture(white, runs)


@pytest.mark.parametrize("side", [64, 100, 300])
@pytest.mark.parametrize("name", ["a", "alpha_0.5", "Übergröße" * 12])
def test_each_title_is_in_the_middle_above_its_columns(side, name):
    drawn = picture([name, "other"], side)
    cell = side * max(1, 128 // side)
    step = cell + 4
    assert drawn.shape == (HEADER + 2 * step - 4, 5 * step - 4, 3)
    assert (drawn[HEADER:] == 255).all()
    dark = (drawn < 128).any(-1)
    name_line, kinds = dark[: HEADER // 2], dark[HEADER // 2 : HEADER]
    for line, lefts, width in (
        (kinds, [0, step, 2 * step, 3 * step, 4 * step], cell),
        (name_line, [step, 3 * step], step + cell),
    ):
        covered = np.zeros(line.shape[1], bool)
        for left in lefts:
            (columns,) = np.nonzero(line[:, left : left + width].any(0))
            assert abs(columns.min() + columns.max() + 1 - width) <= 6
            covered[left : left + width] = True
        assert not line[:, ~covered].any()


def test_a_name_that_is_too_long_keeps_its_end():
    long = "x" * 200
    assert (picture([f"{long}1"]) != picture([f"{long}2"])).any()
    np.testing.assert_array_equal(picture([f"{long}1"]), picture([f"y{long}1"]))


def read(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


def shows(png, color):
    """Whether there are lines of a colour."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(read(png) - wanted).max(-1) < 8).sum() > 50


def test_each_run_has_a_curve():
    steps = [10.0, 20.0, 30.0]
    curves = {"a": (steps, [3.0, 2.0, 1.0]), "b": (steps, [3.0, float("nan"), 2.0])}
    png = comparison.curves_picture("nats", curves, {})
    found = [shows(png, color) for color in comparison.COLORS[:3]]
    assert found == [True, True, False]
    assert png == comparison.curves_picture("nats", curves, {})


def test_training_is_drawn_through_and_what_is_held_out_is_dashed(monkeypatch):
    figures = []
    monkeypatch.setattr(comparison, "_png", lambda figure: figures.append(figure) or b"")
    steps = [10.0, 20.0, 30.0]
    held_out = {"a": (steps, [3.0, 2.0, 1.0]), "b": (steps, [3.0, 2.5, 2.0])}
    comparison.curves_picture("nats", held_out, {"b": (steps, [2.0, 1.0, 0.5])})
    first, second, third = figures[0].axes[0].get_lines()
    assert [line.get_linestyle() for line in (first, second, third)] == ["-", "--", "-"]
    assert second.get_color() == third.get_color() != first.get_color()


def test_codebooks_lie_side_by_side(monkeypatch):
    figures = []
    monkeypatch.setattr(comparison, "_png", lambda figure: figures.append(figure) or b"")
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 1, (50, 1)) * np.ones(4)
    comparison.codebooks_picture({"round": rng.normal(0, 1, (90, 4)), "flat": flat})
    for axes, name, count in zip(figures[0].axes, ("round", "flat"), (90, 50), strict=True):
        assert axes.get_title() == f"{name}: {count} codes"
        assert len(axes.collections[0].get_offsets()) == count
    assert "100 % of the variance" in figures[0].axes[1].get_xlabel()


def test_both_distances_have_an_axis(monkeypatch):
    runs = [
        Tradeoff(a, Distance("rFD-lite1", 5 + a), Distance("FD-lite1", 90 - a, (80.0, 95.0)))
        for a in (1.0, 0.0, 0.4)
    ]
    figures = []
    monkeypatch.setattr(comparison, "_png", lambda figure: figures.append(figure) or b"")
    comparison.tradeoff_picture(runs)
    left, right = figures[0].axes
    assert left.get_ylabel() == "rFD-lite1 of reconstructions"
    assert right.get_ylabel() == "FD-lite1 of samples"
    for axes, values in ((left, [5, 5.4, 6]), (right, [90, 89.6, 89])):
        (line,) = axes.get_lines()
        assert line.get_xydata().tolist() == np.c_[[0, 0.4, 1], values].tolist()
    (first, *_) = right.collections
    assert first.get_segments()[0].tolist() == [[0, 80], [0, 95]] and not left.collections
