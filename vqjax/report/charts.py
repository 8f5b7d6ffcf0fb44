"""Charts as SVG that goes into a page: no network, no fonts, the same bytes every time."""

import dataclasses
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Width and height in inches: about a phone's width, so that text is there of the size that is set.
_SIZE = 4.4, 3.0
# Colours that the colour-blind can tell apart (Okabe and Ito 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b5b5b")
_UNUSED = "#9a9a9a"
_STYLE: Any = {
    "svg.hashsalt": "vqjax",
    # Text stays text: it can be searched, and takes the page's font.
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
}
# A point of a scatter plot takes 100 bytes; beyond so many, they are drawn into a picture.
_MAX_POINTS = 2_000


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        svg: the element, with a text alternative.
        title: its heading.
        caption: text below it.
    """

    svg: Markup
    title: str
    caption: str


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """A curve; NaN leaves a gap.

    Attributes:
        label: in the legend.
        x: ascending.
        y: values.
        held_out: of held-out images: dashed, with points.
        color: index of its colour; curves that belong together have the same.
    """

    label: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    held_out: bool = False
    color: int = 0


def line_chart(
    name: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    start: int | None = None,
    end: float | None = None,
) -> Chart:
    """Curves over training steps.

    Args:
        name: unique in the page.
        title: heading.
        caption: text below it.
        series: at least one.
        log: whether the axis of the values is logarithmic.
        limits: of that axis [those of the values].
        start: step to mark as the adversary's first.
        end: last step of the axis [the last one that has a value].
    """
    with new_axes() as (figure, axes):
        draw_curves(figure, axes, series, log=log, limits=limits, start=start, end=end)
        shown = "; ".join(_described(curve) for curve in series)
        return Chart(_svg(figure, name, f"{title}. By step: {shown}."), title, caption)


def draw_curves(
    figure: Figure,
    axes: Axes,
    series: Sequence[Series],
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    start: int | None = None,
    end: float | None = None,
) -> None:
    """Draws curves over training steps, with their legend; see `line_chart`."""
    for curve in series:
        style = "--" if curve.held_out else "-"
        marker = "o" if curve.held_out or len(curve.x) < 3 else ""
        color = COLORS[curve.color % len(COLORS)]
        axes.plot(curve.x, curve.y, style, marker=marker, ms=3.5, color=color)
    handles: list[tuple[Artist, str]] = list(
        zip(axes.get_lines(), [curve.label for curve in series], strict=True)
    )
    if start is not None:
        line = axes.axvline(start, color="#444444", linestyle=":", linewidth=1.2)
        handles.append((line, "adversary starts"))
    if log and any(np.nanmax(curve.y, initial=0.0) > 0 for curve in series):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainLogFormatter(minor_thresholds=(1.5, 0.4)))
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1.5, 0.4)))
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlim(0, None if end is None else 1.02 * end)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: _count(x))
    if len(handles) > 1:
        draw_legend(figure, handles)


def distance_by_count(
    name: str,
    metric: str,
    counts: Sequence[int],
    distances: Sequence[float],
    infinity: float | None,
) -> Chart:
    """A Fréchet distance over 1 / number of images, and the line to infinitely many.

    Source: Chong and Forsyth 2020, section 3.

    Args:
        name: unique in the page.
        metric: name of the distance.
        counts: numbers of images, ascending.
        distances: of so many.
        infinity: their limit; None where that is not known.
    """
    x, y = 1 / np.asarray(counts, float), np.asarray(distances, float)
    with new_axes() as (figure, axes):
        axes.plot(x, y, "o", color=COLORS[0], ms=5)
        ticks, labels = x.tolist(), [f"{count:,}" for count in counts]
        if infinity is not None:
            # The line that was fitted: its intercept is given, and its slope follows.
            slope = x @ (y - infinity) / (x @ x)
            ends = np.array([0, x.max()])
            axes.plot(ends, infinity + slope * ends, "--", color=COLORS[1], zorder=1)
            axes.plot(0, infinity, "D", color=COLORS[1], ms=6, clip_on=False)
            ticks, labels = [0.0, *ticks], ["∞", *labels]
        _thin_ticks(axes, ticks, labels)
        axes.set_xlim(0, x.max() * 1.05)
        axes.margins(y=0.15)
        axes.set_xlabel("images (spaced by 1 / number)")
        axes.set_ylabel(metric)
        listed = ", ".join(f"{d:.4g} of {n:,}" for n, d in zip(counts, distances, strict=True))
        end = "" if infinity is None else f"; {infinity:.4g} of infinitely many"
        caption = "Few images make the distance too large, by a term in 1 / number."
        if infinity is None:
            caption += " There are too few images here for a line to infinitely many."
        else:
            caption += f" A line to infinitely many ends at {infinity:.4g}."
        title = f"{metric} by number of images"
        return Chart(_svg(figure, name, f"{title}: {listed}{end}."), title, caption)


def frequencies(name: str, counts: Float[np.ndarray, " k"]) -> Chart:
    """The share of each code, most used first, on logarithmic axes.

    Args:
        name: unique in the page.
        counts: of each code.
    """
    shares = np.sort(counts)[::-1] / max(counts.sum(), 1)
    used = int(np.count_nonzero(shares))
    with new_axes() as (figure, axes):
        rank = np.arange(1, used + 1)
        axes.fill_between(rank, shares[:used], shares[:used].min(initial=1), alpha=0.25, step="mid")
        (line,) = axes.step(rank, shares[:used], where="mid", color=COLORS[0])
        even = axes.axhline(1 / len(counts), color=COLORS[1], linestyle="--", linewidth=1.3)
        axes.set_xlim(1, len(counts))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("code, most used first")
        axes.set_ylabel("share of all tokens")
        axes.xaxis.set_major_formatter(lambda x, _: _count(x))
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g} %")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(ticker.NullFormatter())
        draw_legend(figure, [(line, "share of the code"), (even, "if all were used alike")])
        alt = f"Share of the tokens by code: the most used one has {100 * shares[0]:.3g} %"
        caption = f"{used:,} of {len(counts):,} codes are used; the axes are logarithmic."
        title = "How often codes are used"
        return Chart(_svg(figure, name, f"{alt}, {used} codes are used."), title, caption)


def codebook_map(
    name: str,
    points: Float[np.ndarray, "k 2"],
    counts: Float[np.ndarray, " k"],
    explained: Float[np.ndarray, "2"],
) -> Chart:
    """The codes along the first two principal components. Source: paper 002, figure 5.

    Args:
        name: unique in the page.
        points: coordinates.
        counts: how often each code is used: size and colour.
        explained: share of the variance along each component.
    """
    used = counts > 0
    weight = counts / max(counts.max(), 1)
    with new_axes() as (figure, axes):
        raster = len(points) > _MAX_POINTS
        axes.scatter(
            points[~used, 0],
            points[~used, 1],
            s=9,
            facecolors="none",
            edgecolors=_UNUSED,
            lw=0.7,
            rasterized=raster,
        )
        order = np.flatnonzero(used)[np.argsort(counts[used])]
        drawn = axes.scatter(
            points[order, 0],
            points[order, 1],
            s=6 + 60 * weight[order],
            c=counts[order],
            norm=matplotlib.colors.LogNorm(1, max(counts.max(), 2)),
            cmap="viridis",
            alpha=0.8,
            linewidths=0,
            rasterized=raster,
        )
        bar = figure.colorbar(drawn, ax=axes, label="times used", pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda y, _: _count(y))
        bar.ax.yaxis.set_minor_formatter(ticker.NullFormatter())
        bar.outline.set_visible(False)
        for axis, share, which in zip(
            (axes.xaxis, axes.yaxis), explained, ("1st", "2nd"), strict=True
        ):
            axis.set_label_text(f"{which} component ({100 * share:.1f} %)")
        both = f"{100 * explained.sum():.1f} %"
        title = "The codebook, by principal components"
        caption = (
            f"Each point is a code, larger and brighter the more it is used; rings are unused."
            f" The two components explain {both} of the vectors' variance."
        )
        alt = f"Scatter plot of {len(points)} codes on two components that explain {both}."
        return Chart(_svg(figure, name, alt), title, caption)


def cumulative(
    name: str, title: str, caption: str, label: str, sets: dict[str, Float[np.ndarray, " _"]]
) -> Chart:
    """The share of each set that lies below a value.

    Args:
        name: unique in the page.
        title: heading.
        caption: text below it.
        label: of the values.
        sets: values by the name of the set.
    """
    with new_axes() as (figure, axes):
        for values, color in zip(sets.values(), (COLORS[1], COLORS[0], *COLORS[2:]), strict=False):
            axes.ecdf(values, color=color)
        axes.set_ylim(0, 1)
        axes.set_xlabel(label)
        axes.set_ylabel("share of the images")
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0, symbol=" %"))
        draw_legend(figure, list(zip(axes.get_lines(), sets, strict=True)))
        medians = ", ".join(f"{np.median(v):.3g} for {k}" for k, v in sets.items())
        return Chart(_svg(figure, name, f"{title}: medians are {medians}."), title, caption)


class _PlainLogFormatter(ticker.LogFormatter):
    """Labels the ticks that its base class labels, but without powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


@contextmanager
def new_axes() -> Iterator[tuple[Figure, Axes]]:
    """The axes of a new figure; all charts have one style."""
    with new_row(1) as (figure, (axes,)):
        yield figure, axes


@contextmanager
def new_row(count: int) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Axes of a new figure, side by side."""
    with matplotlib.rc_context(_STYLE):
        width, height = _SIZE
        figure = Figure(figsize=(count * width, height), layout="constrained")
        yield figure, figure.subplots(1, count, squeeze=False)[0]


def draw_legend(figure: Figure, handles: Sequence[tuple[Artist, str]]) -> None:
    """Below the axes, where it hides nothing."""
    columns = 2 if max(len(label) for _, label in handles) > 16 else 3
    figure.legend(
        [handle for handle, _ in handles],
        [label for _, label in handles],
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        handlelength=1.8,
        columnspacing=1.2,
    )


def _thin_ticks(axes: Axes, ticks: list[float], labels: list[str]) -> None:
    """Of ticks that would overlap, those from the left that have room."""
    shown: list[int] = []
    for i in np.argsort(ticks):
        if not shown or ticks[i] - ticks[shown[-1]] > 0.15 * max(ticks):
            shown.append(int(i))
    axes.set_xticks([ticks[i] for i in shown], [labels[i] for i in shown])


def _count(x: float) -> str:
    """A whole number as it is told, or in thousands."""
    return f"{x / 1000:,g}k" if abs(x) >= 10_000 else f"{x:,g}"


def _described(curve: Series) -> str:
    finite = np.flatnonzero(np.isfinite(curve.y))
    if not len(finite):
        return f"{curve.label} is nowhere finite"
    first, last = curve.y[finite[0]], curve.y[finite[-1]]
    return f"{curve.label} from {first:.4g} to {last:.4g}"


def _svg(figure: Figure, name: str, alternative: str) -> Markup:
    """A figure as an element of a page, its ids made unique by a name."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing, dpi=150)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # A style sheet would hold for the whole page.
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    # The page says which font it is.
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box
    label = html.escape(alternative)
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">'
    return Markup(re.sub(r"<svg .*?>", lambda _: opening, text, count=1, flags=re.DOTALL))
