"""Shows several runs side by side. Source: papers 001 and 002.

    vqjax visualize --workdir=runs/a,runs/b [--num_images=8 --seed=0]
    vqjax visualize --workdir=runs/a,runs/b --what=curves
    vqjax visualize --workdir=runs/a,runs/b --what=alpha
    vqjax visualize --workdir=runs/a,runs/b --what=importance
    vqjax visualize --workdir=runs/a,runs/b --what=codebooks

predictions (paper 001, section 3.2; figures 1, 5 and 11): an autoregressive prior is given the true
codes of held-out images, and predicts each from those before it. The picture shows each image, then
from each run its reconstruction and the image of the likeliest codes: the best that the prior could
do. The numbers are the PSNR of the reconstructions, the share of the codes that are the likeliest,
and the nats that each costs, over the images of the picture.

curves (paper 001, figure 10; paper 002, figure 6a): a held-out metric of the priors over training
steps, and that of the training images where it is measured.

alpha (paper 001, figure 6): the Frechet distances of reconstructions and samples over the semantic
ratio of the loss that the codes were trained with, from what `vqjax evaluate` has left in the
workdirs.

importance (paper 002, figure 4): a tokenizer with an adaptive mask scores the regions of held-out
images. The picture shows each image, then from each run the scores, red where they are high and
blue where they are low, the regions that have a code, and the reconstruction from these.

codebooks (paper 002, figure 5): the codes of each run along their first two principal components.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict

from vqjax.data import Source, build_source, evaluation_batches
from vqjax.errors import InputError, did_you_mean
from vqjax.evaluation.results import entry_name, read_results
from vqjax.files import absolute, open_path, write_png, write_whole
from vqjax.generation.importance import check_adaptive, importance
from vqjax.generation.predictions import check_autoregressive, predict
from vqjax.generation.run import Conditions, Images, Run
from vqjax.parallel import make_mesh
from vqjax.programs import decoder_flag
from vqjax.report.comparison import (
    Distance,
    Tradeoff,
    codebooks_picture,
    curves_picture,
    importance_picture,
    predictions_picture,
    tradeoff_picture,
)
from vqjax.report.curves import Curves, read_metrics
from vqjax.runs.build import data_settings
from vqjax.runs.stages import tokenizer_of, trained_stage
from vqjax.training.console import LOGGER_NAME, setup_logging

WORKDIR = flags.DEFINE_list("workdir", None, "Folders of runs of train.py, the pictures' columns")
WHAT = flags.DEFINE_enum(
    "what",
    "predictions",
    ["predictions", "curves", "alpha", "importance", "codebooks"],
    "Which picture, see above",
)
OUT = flags.DEFINE_string("out", "", "PNG to write [<what>.png in the first workdir]")
NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 8, "predictions, importance: how many held-out images"
)
SEED = flags.DEFINE_integer("seed", 0, "predictions, importance: another seed shows other images")
DECODER = decoder_flag.define()
METRIC = flags.DEFINE_string(
    "metric", "", "curves: a metric of validation [nats_per_token, or else loss_at_0.5]"
)
flags.mark_flag_as_required("workdir")

# What each is for, so that none is given in vain.
OWN_FLAGS = (
    (NUM_IMAGES, ("predictions", "importance")),
    (SEED, ("predictions", "importance")),
    (DECODER, ("predictions", "alpha", "importance")),
    (METRIC, ("curves",)),
)
# Held-out metrics of priors in the order in which they are looked for, with their label.
METRICS = {
    "nats_per_token": "held-out nats per token",
    "loss_at_0.5": "held-out nats per token, half of them masked",
}
# What the protocols of two runs may differ in: their models, and the LPIPS that is fair to them.
_OF_A_RUN = ("tokenizer", "prior", "perceptual")

Found = TypeVar("Found")

# Run as a program, this module's own name is another.
log = logging.getLogger(f"{LOGGER_NAME}.visualize")


def main() -> None:
    """Opens the runs, draws what is asked for, and tells the numbers."""
    _check_flags()
    workdirs = [open_path(text, "--workdir") for text in _given()]
    out = open_path(OUT.value, "--out") if OUT.value else workdirs[0] / f"{WHAT.value}.png"
    if out.is_dir():
        raise InputError(f"--out={out}: this is a folder, the name of a PNG file is needed")
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    named = dict(zip(_names(workdirs), workdirs, strict=True))
    runs = {name: Run(workdir, mesh, DECODER.value) for name, workdir in named.items()}
    draw: Mapping[str, Callable[[dict[str, Run], epath.Path], None]] = {
        "predictions": _predictions,
        "curves": _curves,
        "alpha": _alpha,
        "importance": _importance,
        "codebooks": _codebooks,
    }
    draw[WHAT.value](runs, out)
    log.info("%s", out)


def _check_flags() -> None:
    """Raises InputError for what is wrong with the flags by themselves."""
    given = _given()
    if not given or not all(given):
        raise InputError(
            f"--workdir={','.join(given)}: folders of runs are needed, like runs/a,runs/b"
        )
    if len(set(given)) < len(given):
        raise InputError(f"--workdir={','.join(given)}: a run is named twice")
    if NUM_IMAGES.value < 1:
        raise InputError(f"--num_images={NUM_IMAGES.value}: at least 1 is needed")
    if SEED.value < 0:
        raise InputError(f"--seed={SEED.value}: 0 or more is needed")
    for flag, kinds in OWN_FLAGS:
        if flag.present and WHAT.value not in kinds:
            raise InputError(
                f"--{flag.name}={flag.value}: it is for --what={' or '.join(kinds)}; leave it out"
            )


def _given() -> list[str]:
    return list(WORKDIR.value or ())


def _names(workdirs: Sequence[epath.Path]) -> list[str]:
    """Names of the runs: those of their folders, or where two are alike the whole paths."""
    names = [absolute(workdir).name for workdir in workdirs]
    return names if len(set(names)) == len(names) else _given()


def _predictions(runs: dict[str, Run], out: epath.Path) -> None:
    """The picture of images, reconstructions and predictions, and each run's numbers."""
    images, found = _of_each(runs, check_autoregressive, predict)
    write_png(out, predictions_picture(images, found))
    width = max(map(len, found))
    for name, values in found.items():
        log.info(
            "%s  PSNR %.2f dB, top-1 accuracy %.2f %%, %.3f nats per token",
            f"{name:{width}}",
            values.psnr,
            100 * values.accuracy,
            values.nats_per_token,
        )
    log.info("of %d held-out images: input, then reconstruction and prediction by run", len(images))


def _importance(runs: dict[str, Run], out: epath.Path) -> None:
    """The picture of images, scores, kept regions and reconstructions, and each run's numbers."""
    images, found = _of_each(runs, check_adaptive, lambda run, images, _: importance(run, images))
    write_png(out, importance_picture(images, found))
    width = max(map(len, found))
    for name, values in found.items():
        share = 100 * np.mean(values.kept)
        log.info("%s  PSNR %.2f dB, %.4g %% kept", f"{name:{width}}", values.psnr, share)
    log.info("of %d held-out images: input, then importance, kept, reconstruction", len(images))


def _codebooks(runs: dict[str, Run], out: epath.Path) -> None:
    """The picture of all codes of each run."""
    setup_logging(next(iter(runs.values())).workdir)
    codebooks = {}
    for name in list(runs):
        run = runs.pop(name)
        vectors = run.tokenizer.apply(run.tokenizer_variables, method="codebook")
        codebooks[name] = np.asarray(vectors)
    write_whole(out, codebooks_picture(codebooks))


def _of_each(
    runs: dict[str, Run],
    check: Callable[[Run], None],
    make: Callable[[Run, Images, Conditions], Found],
) -> tuple[Images, dict[str, Found]]:
    """Held-out images, and what each run makes of them.

    Args:
        runs: by name; they are used up.
        check: whether a run can make it; raises InputError.
        make: takes a run, images, and what its prior is told of each.
    """
    sources: dict[str, Source] = {}
    first = next(iter(runs))
    for name, run in runs.items():
        check(run)
        data = run.config.data
        sources[name] = build_source(data.source, "validation", data.resolution)
        theirs, ours = (_images_of(runs[n], sources[n]) for n in (first, name))
        for what, value in ours.items():
            if value != theirs[what]:
                raise InputError(
                    f"--workdir: {run.workdir} has the {what} {value}, {runs[first].workdir}"
                    f" {theirs[what]}: only runs on the same images can be compared"
                )
    setup_logging(runs[first].workdir)
    found = {}
    images: Any = None
    for name in list(runs):
        # The weights of one run at a time.
        run = runs.pop(name)
        batch = _held_out(run, sources[name])
        images = batch["image"]
        found[name] = make(run, images, batch["condition"])
    return images, found


def _images_of(run: Run, source: Source) -> dict[str, Any]:
    """What makes the held-out images of two runs the same."""
    return {
        "resolution": run.config.data.resolution,
        "data set": run.config.data.source.name,
        "held-out images": source.fingerprint,
    }


def _held_out(run: Run, source: Source) -> dict[str, np.ndarray]:
    """Held-out images that can be read, with what this run's prior is told of each."""
    count = min(NUM_IMAGES.value, len(source))
    batches = evaluation_batches(
        source,
        run.condition,
        data_settings(run.config),
        batch_size=count,
        # Full batches alone, in turn.
        start=SEED.value % (len(source) // count),
    )
    batch = next(batches)
    return {key: batch[key][batch["valid"]] for key in ("image", "condition")}


def _curves(runs: dict[str, Run], out: epath.Path) -> None:
    """The picture of a metric over steps, held-out and of training."""
    found = {name: _prior_curves(run) for name, run in runs.items()}
    metric = _metric(found)
    held_out, trained = (
        {name: of[key] for name, of in found.items() if key in of}
        for key in (f"validation/{metric}", f"train/{metric}")
    )
    setup_logging(next(iter(runs.values())).workdir)
    label = METRICS.get(metric, metric if trained else f"held-out {metric}")
    write_whole(out, curves_picture(label, held_out, trained))
    for name, (steps, values) in held_out.items():
        log.info("%s: held-out %s %.4g at step %d", name, metric, values[-1], steps[-1])


def _prior_curves(run: Run) -> Curves:
    """All metrics of the training of a run's prior."""
    if run.prior_stage is None:
        raise InputError(f"{run.workdir} is a run without a prior: name runs that have one")
    folder = trained_stage(run.config, run.workdir, run.prior_stage).folder
    return read_metrics(folder / "metrics.jsonl")


def _metric(found: Mapping[str, Curves]) -> str:
    """The metric that is asked for, or the first that all runs have."""
    each = [{name for name in of if name.startswith("validation/")} for of in found.values()]
    common = {name.removeprefix("validation/") for name in set.intersection(*each)}
    if METRIC.value:
        if METRIC.value not in common:
            raise InputError(f"--metric={METRIC.value}: {did_you_mean(METRIC.value, common)}")
        return METRIC.value
    for metric in METRICS:
        if metric in common:
            return metric
    raise InputError(
        f"the runs have none of {', '.join(METRICS)} in common: name a --metric that all have been"
        f" evaluated by in training; valid: {', '.join(sorted(common)) or 'none'}"
    )


def _alpha(runs: dict[str, Run], out: epath.Path) -> None:
    """The picture of both distances over the semantic ratio."""
    ratios = {name: _semantic_ratio(run) for name, run in runs.items()}
    entries = {kind: _entries(runs, kind) for kind in ("reconstruction", "generation")}
    missing = [
        f"vqjax evaluate --workdir={run.workdir} --what={kind}"
        + (f" --decoder={run.other_decoder}" if run.other_decoder else "")
        for name, run in runs.items()
        for kind, found in entries.items()
        if name not in found
    ]
    if missing:
        raise InputError(f"not evaluated yet, run: {'; '.join(missing)}")
    distances = {kind: _distances(kind, found) for kind, found in entries.items()}
    tradeoffs = {
        name: Tradeoff(ratio, *(of[name] for of in distances.values()))
        for name, ratio in ratios.items()
    }
    setup_logging(next(iter(runs.values())).workdir)
    for kind, found in entries.items():
        _tell_differences(kind, found)
    write_whole(out, tradeoff_picture(list(tradeoffs.values())))
    for name, run in tradeoffs.items():
        both = (run.reconstruction, run.generation)
        told = ", ".join(f"{distance.name} {distance.value:.5g}" for distance in both)
        log.info("%s: alpha %g, %s", name, run.alpha, told)


def _semantic_ratio(run: Run) -> float:
    """Alpha of the loss that a run's codes were trained with."""
    stage = tokenizer_of(run.config, run.tokenizer_stage)
    loss = trained_stage(run.config, run.workdir, stage).config.loss
    if not loss.get("semantic"):
        raise InputError(
            f"{run.workdir} has config.{stage}.loss.semantic=0, so its codes have no semantic"
            " ratio: name runs that were trained with the semantic-enhanced perceptual loss"
        )
    return float(loss.semantic_ratio)


def _entries(runs: Mapping[str, Run], kind: str) -> dict[str, dict[str, Any]]:
    """What `vqjax evaluate` has kept of an evaluation, by run; of some nothing."""
    kept = {name: read_results(run.workdir / "evaluation") for name, run in runs.items()}
    names = {name: entry_name(kind, run.other_decoder) for name, run in runs.items()}
    return {name: of[names[name]] for name, of in kept.items() if names[name] in of}


def _distances(kind: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Distance]:
    """The Fréchet distance of each run, on one network."""
    found = {}
    for name, entry in entries.items():
        metric = entry["by_count"]["metric"]
        interval = entry["interval"].get(metric)
        found[name] = Distance(metric, entry["metrics"][metric], interval and tuple(interval))
    networks = {distance.name: name for name, distance in found.items()}
    if len(networks) > 1:
        told = ", ".join(f"{metric} of {name}" for metric, name in networks.items())
        raise InputError(
            f"the runs' {kind} is scored on several networks ({told}), whose distances cannot be"
            " compared: give all of them to vqjax evaluate with the same --network"
        )
    return found


def _tell_differences(kind: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Warns of runs whose numbers were not taken alike."""
    protocols = {
        name: flatten_dict(
            {key: x for key, x in entry["protocol"].items() if key not in _OF_A_RUN}, sep="."
        )
        for name, entry in entries.items()
    }
    first, *others = protocols
    theirs = protocols[first]
    for name in others:
        ours = protocols[name]
        differing = [
            f"{key} is {ours.get(key)}, not {theirs.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if differing:
            log.warning(
                "%s: its %s was not evaluated as that of %s, so compare with care: %s",
                name,
                kind,
                first,
                "; ".join(differing),
            )
