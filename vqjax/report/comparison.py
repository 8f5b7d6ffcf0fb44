"""Pictures of several runs side by side: what they make of images, their codebooks and losses."""

import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vqjax.generation.image_grid import GAP, enlargement, image_grid
from vqjax.generation.importance import Importance
from vqjax.generation.predictions import Predictions
from vqjax.generation.run import Images
from vqjax.report.charts import COLORS, Series, draw_curves, draw_legend, new_axes, new_row
from vqjax.report.codebook import principal_components
from vqjax.report.importance import heat, masked

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
    kinds = ("reconstruction", "prediction")
    columns = {name: [run.reconstructions, run.predictions] for name, run in runs.items()}
    return _table(images, kinds, columns)


def importance_picture(
    images: Images, runs: Mapping[str, Importance]
) -> UInt8[np.ndarray, "height width 3"]:
    """A row for each image: itself, then by each run its scores, what is kept, and what is made.

    Scores are red where they are high and blue where they are low, each image by itself; masked
    regions are grey. Names stand above the columns. Source: paper 002, figure 4.

    Args:
        images: of 8 bits.
        runs: what each run holds to be important in them, by its name.
    """
    kinds = ("importance", "kept", "reconstruction")
    columns = {
        name: [heat(images, run.scores), masked(images, run.kept), run.reconstructions]
        for name, run in runs.items()
    }
    return _table(images, kinds, columns)


def _table(
    images: Images, kinds: Sequence[str], runs: Mapping[str, Sequence[Images]]
) -> UInt8[np.ndarray, "height width 3"]:
    """A row for each image: itself, then by each run an image of each kind, under their names."""
    columns = [images, *itertools.chain.from_iterable(runs.values())]
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
        left, width = (1 + len(kinds) * number) * step, len(kinds) * step - GAP
        _title(draw, name, left, width, 0)
        # What the columns have in common stands over a line.
        draw.line((left, _LINE - 1, left + width - 1, _LINE - 1), fill=(170, 170, 170))
        for column, kind in enumerate(kinds):
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


def curves_picture(
    label: str,
    held_out: Mapping[str, Sequence[Sequence[float]]],
    trained: Mapping[str, Sequence[Sequence[float]]],
) -> bytes:
    """A metric of several runs over training steps, as a PNG.

    Source: paper 001, figure 10; with that of training beside it: paper 002, figure 6a.

    Args:
        label: of the metric.
        held_out: steps and values by the name of the run.
        trained: the same of the training images, of those runs that have it.
    """
    series = []
    for color, name in enumerate(held_out):
        x, y = map(np.asarray, held_out[name])
        both = name in trained
        series.append(Series(f"{name}, held-out" if both else name, x, y, both, color))
        if both:
            x, y = map(np.asarray, trained[name])
            series.append(Series(f"{name}, training", x, y, False, color))
    with new_axes() as (figure, axes):
        draw_curves(figure, axes, series)
        axes.set_ylabel(label)
        return _png(figure)


def codebooks_picture(codebooks: Mapping[str, Float[np.ndarray, "_ _"]]) -> bytes:
    """The codes of each run along their first two principal components, as a PNG.

    Where many points lie on each other, many codes say nearly the same. Source: paper 002, figure
    5.

    Args:
        codebooks: vectors of all codes by the name of the run, at least one.
    """
    with new_row(len(codebooks)) as (figure, row):
        for axes, (name, vectors) in zip(row, codebooks.items(), strict=True):
            points, shares = principal_components(vectors)
            axes.scatter(points[:, 0], points[:, 1], s=7, color=COLORS[0], alpha=0.5, lw=0)
            axes.set_axisbelow(True)
            axes.set_title(f"{name}: {len(vectors):,} codes", fontsize=10)
            for axis, number, share in zip((axes.xaxis, axes.yaxis), (1, 2), shares, strict=True):
                axis.set_label_text(f"component {number}, {100 * share:.3g} % of the variance")
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
