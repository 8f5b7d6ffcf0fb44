"""Makes one HTML file of a run: its numbers, curves, codebook and pictures.

    vqjax report --workdir=runs/openmoji [--out=report.html --samples=60 --seed=0 ...]

The file needs nothing else: no network, no fonts. It reads well on a phone and on
paper. What a run does not have yet is named, and how to get it. The metrics are those that
`vqjax evaluate` has left in the workdir; everything else is made here.
"""

import datetime
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from absl import flags

from vqjax.conditions import NoCondition
from vqjax.data import Source, Split, build_source, evaluation_batches
from vqjax.errors import InputError
from vqjax.evaluation.network_registry import build_network
from vqjax.evaluation.protocol import environment
from vqjax.evaluation.results import entry_name, read_results
from vqjax.files import absolute, open_path, write_whole
from vqjax.generation.run import Run
from vqjax.programs import decoder_flag
from vqjax.programs.host_memory import keep_memory_of_host_computation
from vqjax.report import codebook, curves, gallery, neighbours, tables
from vqjax.report.page import Missing, Report, StageReport, render
from vqjax.report.summary import key_numbers, summary
from vqjax.runs.build import data_settings
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.stages import all_stages, trained_stage
from vqjax.training.console import LOGGER_NAME, setup_logging

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
OUT = flags.DEFINE_string("out", "", "HTML file to write [<workdir>/report.html]")
DECODER = decoder_flag.define()
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other samples")
RECONSTRUCTIONS = flags.DEFINE_integer("reconstructions", 20, "Held-out images to show")
SAMPLES = flags.DEFINE_integer("samples", 60, "Images to draw, of all classes together")
NEIGHBOURS = flags.DEFINE_integer("neighbours", 8, "Samples to show with their nearest images")
NEIGHBOURS_FROM = flags.DEFINE_integer(
    "neighbours_from", 5000, "Training images to look for the nearest ones among"
)
HELD_OUT = flags.DEFINE_integer("held_out", 500, "Held-out images to compare the samples with")
flags.mark_flag_as_required("workdir")

KINDS = ("reconstruction", "generation")

# Run as a program, this module's own name is another.
log = logging.getLogger(f"{LOGGER_NAME}.report")
T = TypeVar("T")


def main() -> None:
    """Gathers what there is of a run, and writes the page."""
    keep_memory_of_host_computation()
    workdir = open_path(WORKDIR.value or "", "--workdir")
    out = open_path(OUT.value, "--out") if OUT.value else workdir / "report.html"
    if out.is_dir():
        raise InputError(f"--out={out}: this is a folder, an HTML file is needed")
    for flag in (RECONSTRUCTIONS, SAMPLES, NEIGHBOURS, NEIGHBOURS_FROM, HELD_OUT):
        if flag.value < 1:
            raise InputError(f"--{flag.name}={flag.value}: at least 1 is needed")
    run = Run(workdir, decoder=DECODER.value)
    # The least that there is to report on.
    _ = run.tokenizer_variables
    setup_logging(workdir)
    page = render(_gather(run))
    write_whole(out, page)
    log.info("%s (%.1f MB)", out, len(page.encode()) / 1e6)


def _gather(run: Run) -> Report:
    """All parts of the page; in place of what the run does not have, what is missing."""
    workdir, config = run.workdir, run.config
    evaluations = _evaluations(run)
    own = {kind: evaluations[entry_name(kind, run.other_decoder)] for kind in KINDS}
    stages = {name: _attempt(name, partial(_stage, run, name)) for name in all_stages(config)}
    training = _attempt("training images", lambda: _source(run, "train"))
    validation = _attempt("validation images", lambda: _source(run, "validation"))

    def held_out(limit: int | None) -> Iterator[dict[str, np.ndarray]]:
        return _batches(run, _there(validation), limit)

    def reconstructions() -> list[gallery.Pair]:
        batches = list(held_out(RECONSTRUCTIONS.value))
        images, labels, valid = (
            np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "valid")
        )
        names = _there(validation).class_names
        pairs = gallery.reconstructions(run, names, images, labels)
        return list(itertools.compress(pairs, valid))

    pairs = _attempt("reconstructions", reconstructions)
    book = _attempt("codebook", lambda: codebook.inspect(run, held_out(None)))
    samples = _attempt("samples", lambda: gallery.samples(run, SAMPLES.value, SEED.value))

    def nearest() -> neighbours.Neighbours:
        drawn, source = _there(samples), _there(training)
        limits = NEIGHBOURS_FROM.value, HELD_OUT.value
        counts = len(source), len(_there(validation))
        return neighbours.find(
            build_network(),
            drawn.images,
            # Of as many classes as possible.
            np.linspace(0, len(drawn.images) - 1, NEIGHBOURS.value).round().astype(int).tolist(),
            source,
            _batches(run, source, limits[0]),
            held_out(limits[1]),
            sum(map(min, limits, counts)),
        )

    near = _attempt("nearest training images", nearest)
    validation_curves = _attempt("validation", lambda: _curves(run, run.tokenizer_stage))
    return Report(
        title=absolute(workdir).name,
        made=datetime.datetime.now().strftime("%d %B %Y, %H:%M").lstrip("0"),
        environment=tables.nested(environment()),
        summary=summary(run, stages, training, own, book, near),
        key_numbers=key_numbers(stages, own, book, validation_curves),
        resolution=config.data.resolution,
        evaluations=evaluations,
        reconstructions=pairs,
        samples=samples,
        neighbours=near,
        codebook=book,
        stages=stages,
        config=_config_rows(config.to_dict()),
    )


def _attempt(what: str, make: Callable[[], T]) -> T | Missing:
    """A part of the page, or why there is none."""
    log.info("gathering: %s", what)
    try:
        return make()
    except InputError as e:
        log.warning("left out, %s: %s", what, e)
        return Missing(str(e))


def _there(part: T | Missing) -> T:
    """A part that another one needs."""
    if isinstance(part, Missing):
        raise InputError(part.sentence)
    return part


def _source(run: Run, split: Split) -> Source:
    data = run.config.data
    return build_source(data.source, split, data.resolution)


def _batches(run: Run, source: Source, limit: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Images of a source, in batches that the devices share."""
    devices = run.mesh.size
    count = len(source) if limit is None else min(limit, len(source))
    size = min(count, 32)
    return evaluation_batches(
        source,
        # Images and classes are looked at, not what a prior is told.
        NoCondition(),
        data_settings(run.config),
        batch_size=-(-size // devices) * devices,
        limit=limit,
    )


def _curves(run: Run, name: str) -> curves.Curves:
    folder = trained_stage(run.config, run.workdir, name).folder
    return curves.read_metrics(folder / "metrics.jsonl")


def _stage(run: Run, name: str) -> StageReport:
    """A stage of training.

    Raises:
        InputError: it has no checkpoint.
    """
    trained = trained_stage(run.config, run.workdir, name)
    folder, settings = trained.folder, trained.config
    variables = run.stage_variables(name)
    checkpointer = Checkpointer(folder / "checkpoints", read_only=True)
    newest = checkpointer.latest_step
    checkpointer.close()
    step = run.steps[name]
    start = None
    if "discriminator" in settings and settings.discriminator.model.name != "none":
        start = settings.discriminator.start
    told = f"{settings.batch_size:,} images a step, {settings.optimizer.name}"
    if settings.ema_decay:
        told += ", moving average of the weights"
    return StageReport(
        name=name,
        model=settings.model.name,
        step=step,
        which=settings.use,
        trained=step if newest is None else newest,
        steps=settings.steps,
        settings=told,
        parameters=tables.parameters(variables),
        size=tables.size(variables),
        charts=_attempt(
            f"curves of {name}", lambda: curves.charts(name, _curves(run, name), start)
        ),
    )


def _evaluations(run: Run) -> dict[str, tables.Evaluation | Missing]:
    """The results of `vqjax evaluate`, or a note that it did not run with the page's decoder."""
    folder, decoder = run.workdir / "evaluation", run.other_decoder
    names = {kind: entry_name(kind, decoder) for kind in KINDS}
    found = _attempt("metrics", lambda: read_results(folder))
    if isinstance(found, Missing):
        return dict.fromkeys(names.values(), found)
    flag = f" --decoder={decoder}" if decoder else ""
    result: dict[str, tables.Evaluation | Missing] = {
        name: Missing(
            f"this is not evaluated yet: vqjax evaluate --workdir={run.workdir} --what={what}{flag}"
            f" writes its metrics to {folder}"
        )
        for what, name in names.items()
    }
    for number, (what, values) in enumerate(found.items()):
        result[what] = tables.evaluation(f"evaluation-{number}", values)
    return result


def _config_rows(config: Mapping[str, Any]) -> dict[str, list[tables.Row]]:
    """Settings by top-level key; those that are no group of their own come first."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    return {"general": tables.nested(plain)} | {
        key: tables.nested(value) for key, value in groups.items()
    }
