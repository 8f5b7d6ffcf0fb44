"""The page of a report: its parts, and its HTML."""

import dataclasses
from pathlib import Path
from typing import Any

import jinja2

from vqjax.report.charts import Chart
from vqjax.report.codebook import Codebook
from vqjax.report.gallery import Pair, Samples
from vqjax.report.neighbours import Neighbours
from vqjax.report.tables import Evaluation, ParameterRow, Row, number

_TEMPLATE = "report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Missing:
    """A part of the page that a run has nothing for.

    Attributes:
        sentence: that says so, and how to get it.
    """

    sentence: str


@dataclasses.dataclass(frozen=True)
class StageReport:
    """A stage of training.

    Attributes:
        name: of the stage.
        model: name of its model.
        step: of the checkpoint that is shown.
        which: "last" or "best": how that was chosen.
        trained: the newest step.
        steps: of a finished training.
        settings: of the training, in words.
        parameters: table of its parameters.
        size: numbers that are trained by gradient.
        charts: its curves.
    """

    name: str
    model: str
    step: int
    which: str
    trained: int
    steps: int
    settings: str
    parameters: list[ParameterRow]
    size: int
    charts: list[Chart] | Missing


@dataclasses.dataclass(frozen=True)
class KeyNumber:
    """A number of the head of the page: its name, its text, a note."""

    name: str
    value: str
    note: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All of a page.

    Attributes:
        title: of the page.
        made: when, in words.
        environment: versions and device.
        summary: a paragraph.
        key_numbers: the few that say most.
        resolution: side of the images in pixels.
        evaluations: by kind.
        reconstructions: held-out images and their reconstructions.
        samples: images that were drawn.
        neighbours: training images that are nearest to the samples.
        codebook: its use.
        stages: of training, by name.
        config: the run's settings: rows by top-level key.
    """

    title: str
    made: str
    environment: list[Row]
    summary: str
    key_numbers: list[KeyNumber]
    resolution: int
    evaluations: dict[str, Evaluation | Missing]
    reconstructions: list[Pair] | Missing
    samples: Samples | Missing
    neighbours: Neighbours | Missing
    codebook: Codebook | Missing
    stages: dict[str, StageReport | Missing]
    config: dict[str, list[Row]]


def render(report: Report) -> str:
    """The HTML of a page, which needs nothing but itself."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": _percent}
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    return environment.get_template(_TEMPLATE).render(report=report)


def _percent(share: Any) -> str:
    return f"{100 * share:.3g} %"
