"""Pictures of several runs side by side: their predictions, their losses, their trade-off."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vqjax.generation.image_grid import GAP, enlargement, image_grid
from vqjax.generation.predictions import Predictions
from vqjax.generation.run import Images
from vqjax.report.charts import COLORS, Series, draw_curves, draw_legend, new_axes

_DPI = 200
# Of the titles above the images, in pixels.
_TEXT, _SMALLEST_TEXT, _LINE = 15, 9, 24
_INK = (40, 40, 40)


def predictions_picture(
    images: Images, runs: Mapping[str, Predictions]
) -> UInt8[np.ndarray, "height width 3"]:
    """A row for each image: itself, then its reconstruction and its prediction by each run.

    Names stand above the columns. Source: paper 001, figures 5 and 11.

    Args:
        images: of 8 bits.
        runs: what each run makes of them, by its name.
    """
    columns = [images]
    for run in runs.values():
        columns += [run.reconstructions, run.predictions]
    cells = np.stack(columns, axis=1).reshape(-1, *images.shape[1:])
    grid = image_grid(cells, len(columns))
    height, width = images.shape[1:3]
    cell = width * enlargement(height, width)
    step = cell + GAP
    picture = Image.new("RGB", (grid.shape[1], grid.shape[0] + 2 * _LINE), "white")
    picture.paste(Image.fromarray(grid), (0, 2 * _LINE))
    draw = ImageDraw.Draw(picture)
    _title(draw, "input", 0, cell, 1)
    for number, name in enumerate(runs):
        left = (1 + 2 * number) * step
        _title(draw, name, left, step + cell, 0)
        # What both columns have in common stands over a line.
        draw.line((left, _LINE - 1, left + step + cell - 1, _LINE - 1), fill=(170, 170, 170))
        for column, kind in enumerate(("reconstruction", "prediction")):
            _title(draw, kind, left + column * step, cell, 1)
    return np.asarray(picture)


def _title(draw: ImageDraw.ImageDraw, text: str, left: int, width: int, line: int) -> None:
    """Text in the middle above a column: smaller where it is too wide, then cut."""
    size = _TEXT
    while size > _SMALLEST_TEXT and draw.textlength(text, _font(size)) > width:
        size -= 1
    shown = text
    while len(shown) > 1 and draw.textlength(shown, _font(size)) > width:
        # The end of a name says more than its beginning.
        shown = f"…{shown.lstrip('…')[1:]}"
    place = left + width / 2, (line + 0.5) * _LINE
    draw.text(place, shown, fill=_INK, font=_font(size), anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, and has letters of most languages."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def curves_picture(label: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """A held-out metric of several runs over training steps, as a PNG. Source: figure 10.

    Args:
        label: of the metric.
        curves: steps and values by the name of the run.
    """
    series = [
        Series(name, np.asarray(steps), np.asarray(values), color=color)
        for color, (name, (steps, values)) in enumerate(curves.items())
    ]
    with new_axes() as (figure, axes):
        draw_curves(figure, axes, series)
        axes.set_ylabel(label)
        return _png(figure)


@dataclasses.dataclass(frozen=True)
class Distance:
    """A Fréchet distance that an evaluation has measured.

    Attributes:
        name: that says on which network: "FID" on Inception, "FD-lite1" on EfficientNet-lite1.
        value: of it.
        interval: its 95 % interval; None where that was not estimated.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """A run's place between reconstruction and generation.

    Attributes:
        alpha: semantic ratio of the loss that its codes were trained with, [0, 1].
        reconstruction: distance of its reconstructions.
        generation: distance of its samples.
    """

    alpha: float
    reconstruction: Distance
    generation: Distance


def tradeoff_picture(runs: Sequence[Tradeoff]) -> bytes:
    """Both distances over the semantic ratio, each with an axis, as a PNG. Source: figure 6.

    Args:
        runs: at least one; their distances have the same two names.
    """
    runs = sorted(runs, key=lambda run: run.alpha)
    alphas = [run.alpha for run in runs]
    with new_axes() as (figure, left):
        right = left.twinx()
        # Two scales have no grid in common.
        right.grid(False)
        handles = []
        sides = (
            (left, "of reconstructions", "o", [run.reconstruction for run in runs]),
            (right, "of samples", "s", [run.generation for run in runs]),
        )
        for color, (axes, of, marker, distances) in enumerate(sides):
            values = [distance.value for distance in distances]
            (line,) = axes.plot(alphas, values, f"-{marker}", ms=4.5, color=COLORS[color])
            for alpha, distance in zip(alphas, distances, strict=True):
                if distance.interval:
                    axes.vlines(alpha, *distance.interval, color=COLORS[color], lw=1, alpha=0.6)
            axes.set_ylabel(f"{distances[0].name} {of}", color=COLORS[color])
            axes.tick_params(axis="y", colors=COLORS[color])
            handles.append((line, f"{distances[0].name} {of}"))
        right.spines["right"].set_visible(True)
        left.set_xlabel("semantic ratio α")
        left.set_xticks(sorted(set(alphas)))
        draw_legend(figure, handles)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()
