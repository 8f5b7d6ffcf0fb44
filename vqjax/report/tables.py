"""Numbers of a run as rows of tables: metrics, parameters, settings."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vqjax.parallel import leaf_path
from vqjax.report.charts import Chart, distance_by_count

_HIGHER = {"PSNR", "SSIM", "IS", "precision", "recall", "codebook usage", "codebook perplexity"}
_HIGHER |= {"class accuracy", "top-1", "top-5"}
_LOWER = {"LPIPS", "l1", "l2"}
_LOWER |= {f"{of}{distance}" for of in ("", "r") for distance in ("FID", "FD", "KID", "KD")}
_MAX_LEVELS = 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a nested table.

    Attributes:
        level: depth in the nest, from 0.
        key: its name.
        value: its text; None for a row that only heads others.
    """

    level: int
    key: str
    value: str | None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        name: of the metric.
        value: of it.
        better: "higher", "lower" or "" where neither is said.
        spread: standard error or deviation, if there is one.
        interval: lower and upper end of its 95 % interval, if there is one.
    """

    name: str
    value: float
    better: str
    spread: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """A row of the table of parameters.

    Attributes:
        level: 0 for a part of the model, 1 for a part of that.
        module: its name.
        arrays: number of its arrays.
        size: numbers in them.
        share: of all that are trained by gradient; None for state.
    """

    level: int
    module: str
    arrays: int
    size: int
    share: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, of reconstructions or samples, as tables.

    Attributes:
        metrics: the numbers.
        chart: distance by number of images, if it was measured.
        notes: limits of the numbers, in words.
        columns: of the table by class, after the class.
        classes: its rows: name, then a number or None for each column.
        throughput: speed of the evaluation.
        protocol: everything that the numbers depend on.
        protocol_sha256: hex digest of that.
    """

    metrics: Sequence[Metric]
    chart: Chart | None
    notes: Sequence[str]
    columns: Sequence[str]
    classes: Sequence[tuple[str, Sequence[float | None]]]
    throughput: Mapping[str, float]
    protocol: Sequence[Row]
    protocol_sha256: str

    def metric(self, name: str) -> Metric | None:
        """A metric by its name, whatever network it is on ("FD" for "FD-lite1")."""
        return next((m for m in self.metrics if m.name.split("-")[0] == name), None)


def number(value: float | int | None) -> str:
    """A number as a person reads it: four digits, thousands apart; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def nested(tree: Any, level: int = 0) -> list[Row]:
    """Nested dicts and lists, as JSON has them, row by row."""
    rows: list[Row] = []
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree, 1)
    for key, value in items:
        branches = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
        )
        if branches and value:
            rows += [Row(level, str(key), None), *nested(value, level + 1)]
        else:
            rows.append(Row(level, str(key), _leaf(value)))
    return rows


def parameters(variables: Mapping[str, Any]) -> list[ParameterRow]:
    """Parts of a model and their parts, by collection: parameters, then its state.

    Args:
        variables: {"params": ..., **collections}.
    """
    total = sum(x.size for x in jax.tree.leaves(variables["params"]))
    rows = []
    for collection in sorted(variables, key=lambda name: (name != "params", name)):
        trained = collection == "params"
        sums: dict[tuple[str, ...], list[int]] = {}
        for path, leaf in jax.tree.leaves_with_path(variables[collection]):
            names = leaf_path(path).split("/")
            prefix = () if trained else (f"{collection} (state)",)
            modules = (*prefix, *(names[:-1] or names))
            for depth in range(1, min(_MAX_LEVELS, len(modules)) + 1):
                entry = sums.setdefault(modules[:depth], [0, 0])
                entry[0] += 1
                entry[1] += leaf.size
        # Numbers in names count: block_2 comes before block_10.
        for modules in sorted(sums, key=lambda m: [_natural(name) for name in m]):
            arrays, size = sums[modules]
            share = size / total if trained else None
            rows.append(ParameterRow(len(modules) - 1, modules[-1], arrays, size, share))
    return rows


def size(variables: Mapping[str, Any]) -> int:
    """Numbers that are trained by gradient."""
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def evaluation(name: str, values: Mapping[str, Any]) -> Evaluation:
    """An entry of `metrics.json`.

    Args:
        name: unique in the page.
        values: see `vqjax.evaluation.results.result`.
    """
    spread, interval = values.get("spread") or {}, values.get("interval") or {}
    metrics = [
        Metric(
            metric,
            float(value),
            _better(metric),
            spread.get(metric),
            (interval[metric][0], interval[metric][1]) if metric in interval else None,
        )
        for metric, value in values["metrics"].items()
    ]
    chart, by_count = None, values.get("by_count")
    if by_count and by_count["counts"]:
        chart = distance_by_count(
            f"{name}-by-count",
            by_count.get("metric", "distance"),
            by_count["counts"],
            by_count["distances"],
            by_count.get("infinity"),
        )
    classes = values.get("per_class") or {}
    columns = list(dict.fromkeys(key for row in classes.values() for key in row))
    return Evaluation(
        metrics,
        chart,
        values.get("notes") or [],
        columns,
        [
            (label, [float(row[key]) if key in row else None for key in columns])
            for label, row in classes.items()
        ],
        values.get("throughput") or {},
        nested(values.get("protocol") or {}),
        values.get("protocol_sha256", ""),
    )


def _better(name: str) -> str:
    # Without the classifier, the network, or "at infinity".
    base = re.split(r" \(| at |-(?=\D)", name)[0]
    return "higher" if base in _HIGHER else "lower" if base in _LOWER else ""


def _leaf(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_leaf(v) for v in value) or "none"
    if isinstance(value, Mapping) or value == "":
        return "none"
    return f"{value}"


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)
