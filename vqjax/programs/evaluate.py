"""Measures a run by a protocol that is written down with the numbers.

    vqjax evaluate --workdir=runs/openmoji [--what=reconstruction,generation --num=50000]
    vqjax evaluate --images=samples --reference=statistics.npz --network=inception
        --network_weights=pt_inception-2015-12-05-6726825d.pth

Writes metrics.json and metrics.txt to <workdir>/evaluation. Stopped, it goes on where it was when
it is given the same command again: what it knows of each image is kept beside them, or, where that
is a bucket, in this machine's cache folder. docs/evaluation.md says what each number is.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from absl import flags
from etils import epath

from vqjax.errors import InputError, did_you_mean
from vqjax.evaluation.evaluated_run import EvaluatedRun
from vqjax.evaluation.evaluator import Evaluator, evaluate_images
from vqjax.evaluation.network_registry import NETWORKS, build_network
from vqjax.evaluation.npz import write_statistics
from vqjax.evaluation.protocol import digest
from vqjax.evaluation.reconstructions import evaluate_reconstructions
from vqjax.evaluation.references import Reference, open_images
from vqjax.evaluation.results import entry_name, read_results, table, write_results
from vqjax.evaluation.samples import evaluate_samples
from vqjax.evaluation.set_metrics import MetricSettings
from vqjax.features.inception import Resize
from vqjax.files import cache_folder, is_remote, open_path
from vqjax.programs import decoder_flag, sampling_flags
from vqjax.programs.host_memory import keep_memory_of_host_computation
from vqjax.runs.sampling import GenerationSettings
from vqjax.runs.workdir import read_config
from vqjax.training.console import setup_logging

KINDS = ("reconstruction", "generation")
SPLITS = ("train", "validation")

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of train.py")
IMAGES = flags.DEFINE_string(
    "images", None, "Score the images of this folder or .npz, of whoever made them, not a run's"
)
WHAT = flags.DEFINE_list("what", list(KINDS), "What is scored of a run")
NUM = flags.DEFINE_integer("num", 50_000, "generation: how many samples")
SPLIT = flags.DEFINE_enum("split", "validation", SPLITS, "reconstruction: of which images")
LIMIT = flags.DEFINE_integer("limit", None, "reconstruction: at most so many of them [all]")
REFERENCE = flags.DEFINE_string(
    "reference",
    "train",
    "generation: compare with this split, with the images of a folder, or with an .npz of ADM's"
    " (mu and sigma, or arr_0)",
)
REFERENCE_NUM = flags.DEFINE_integer(
    "reference_num", 50_000, "At most so many images of the reference split; 0 for all"
)
NETWORK = flags.DEFINE_enum("network", "efficientnet_lite1", NETWORKS, "Whose features are used")
NETWORK_WEIGHTS = flags.DEFINE_string("network_weights", None, "inception: file of its weights")
NETWORK_SHA256 = flags.DEFINE_string(
    "network_sha256", None, "inception: of that file, where it is not the published one"
)
RESIZE = flags.DEFINE_enum(
    "resize", "torch", get_args(Resize), "inception: to 299 pixels as pytorch-fid, TF, clean-fid"
)
PIXELS = flags.DEFINE_enum(
    "pixels", "png", ["png", "float"], "Round what the models make to 8 bits, or do not"
)
LABELS = flags.DEFINE_enum(
    "labels",
    None,
    ["balanced", "data"],
    "generation of a class-conditional run: all classes in turn, or the classes of the reference"
    " [balanced]; of a text-conditional run always the captions of the reference",
)
ACCEPTANCE = flags.DEFINE_list(
    "acceptance", ["1"], "generation: fractions that a classifier accepts, each scored by itself"
)
DECODER = decoder_flag.define()
SAMPLING = sampling_flags.define(without=("num_images",))
PER_CLASS = flags.DEFINE_bool("per_class", False, "Also score every class by itself")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap",
    MetricSettings.bootstrap,
    "Draws for the standard error of Frechet distances; 0: none",
)
SEED = flags.DEFINE_integer("seed", 0, "Of the samples")
OUT = flags.DEFINE_string("out", "", "Folder to write to [<workdir>/evaluation]")
EXPORT_SAMPLES = flags.DEFINE_string(
    "export_samples", None, "generation: also write the samples to this .npz, for other evaluators"
)
EXPORT_REFERENCE = flags.DEFINE_string(
    "export_reference", None, "Also write the reference's mu and sigma to this .npz"
)
EXPORT_REFERENCE_IMAGES = flags.DEFINE_string(
    "export_reference_images",
    None,
    "generation: also write the images of the reference split to this .npz, for other evaluators",
)
EXPORTS = (EXPORT_SAMPLES, EXPORT_REFERENCE, EXPORT_REFERENCE_IMAGES)
# What each of the others is for, so that none is given in vain.
OF_INCEPTION = (NETWORK_WEIGHTS, NETWORK_SHA256, RESIZE)
OF_RECONSTRUCTION = (SPLIT, LIMIT)
OF_GENERATION = (NUM, REFERENCE_NUM, LABELS, ACCEPTANCE, SEED, EXPORT_SAMPLES)
OF_GENERATION += (EXPORT_REFERENCE_IMAGES, *SAMPLING.of_samples)


def main() -> None:
    """Checks what is asked for, walks the images, writes and shows the numbers."""
    keep_memory_of_host_computation()
    _check_flags()
    weights = Path(NETWORK_WEIGHTS.value) if NETWORK_WEIGHTS.value else None
    network = build_network(NETWORK.value, weights, NETWORK_SHA256.value, RESIZE.value)
    out = _folder()
    batch = SAMPLING.settings["batch_size"].value
    if batch is None:
        # A run without a prior has no settings of sampling.
        given = read_config(_workdir()).get("sampling", {}) if WORKDIR.value else {}
        batch = given.get("batch_size", GenerationSettings.batch_size)
        batch = -(-batch // jax.device_count()) * jax.device_count()
    evaluator = Evaluator(
        network,
        MetricSettings(bootstrap=BOOTSTRAP.value),
        _rows_folder(out),
        batch,
        PER_CLASS.value,
        "png" if PIXELS.value == "png" else "float",
    )
    if IMAGES.value:
        results = _evaluate_images(evaluator, Path(IMAGES.value), out)
    else:
        results = _evaluate_run(evaluator, _workdir(), out)
    write_results(out, results)
    print(table(results))


def _workdir() -> epath.Path:
    return open_path(WORKDIR.value or "", "--workdir")


def _folder() -> epath.Path:
    """The folder for results, where nothing may be in their way."""
    if OUT.value:
        out = open_path(OUT.value, "--out")
    elif WORKDIR.value:
        out = _workdir() / "evaluation"
    else:
        images = open_path(os.fspath(Path(IMAGES.value or "").resolve()), "--images")
        out = images.with_name(f"{images.name.removesuffix('.npz')}-evaluation")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out={out}: this is a file, a folder is needed")
    read_results(out)
    return out


def _rows_folder(out: epath.Path) -> Path:
    """The folder for what is kept of each image, which is mapped from a disk."""
    if not is_remote(out):
        return Path(out)
    url = hashlib.sha256(os.fspath(out).encode()).hexdigest()
    return cache_folder("evaluation") / url[:16]


def _check_flags() -> None:
    """Raises InputError for what is wrong with the flags by themselves."""
    if bool(WORKDIR.value) == bool(IMAGES.value):
        raise InputError("give --workdir=<folder of a run>, or --images=<folder or .npz of images>")
    for several in (WHAT, ACCEPTANCE):
        if not several.value:
            raise InputError(f"--{several.name}= is empty: say what is to be scored")
    for what in WHAT.value:
        if what not in KINDS:
            raise InputError(f"--what={what}: {did_you_mean(what, KINDS)}")
    _check_used()
    if BOOTSTRAP.value == 1 or BOOTSTRAP.value < 0:
        raise InputError(f"--bootstrap={BOOTSTRAP.value}: 0 for none, or at least 2")
    for number in (NUM, LIMIT):
        if number.value is not None and number.value < 2:
            raise InputError(f"--{number.name}={number.value}: at least 2 images are needed")
    if REFERENCE_NUM.value < 2 and REFERENCE_NUM.value != 0:
        raise InputError(f"--reference_num={REFERENCE_NUM.value}: 0 for all, or at least 2")
    for output in EXPORTS:
        if output.value and is_remote(output.value):
            raise InputError(f"--{output.name}={output.value}: a path of this machine is needed")
    for export in EXPORTS:
        if export.value and Path(export.value).suffix != ".npz":
            raise InputError(f"--{export.name}={export.value}: the name of an .npz file is needed")


def _check_used() -> None:
    """Raises InputError for a flag that is given and would not be looked at."""
    unused: list[tuple[Sequence[flags.FlagHolder[Any]], str]] = []
    if NETWORK.value != "inception":
        unused.append((OF_INCEPTION, f"it is for --network=inception, not {NETWORK.value}"))
    if IMAGES.value:
        of_a_run = (*OF_RECONSTRUCTION, *OF_GENERATION, WHAT, DECODER, PER_CLASS, PIXELS)
        unused.append((of_a_run, "it is for a run, and --images are given"))
    if "generation" not in WHAT.value:
        generation = (*OF_GENERATION, REFERENCE, EXPORT_REFERENCE)
        unused.append((generation, "it is for generation, which --what leaves out"))
    if "reconstruction" not in WHAT.value:
        unused.append((OF_RECONSTRUCTION, "it is for reconstruction, which --what leaves out"))
    for holders, reason in unused:
        for flag in holders:
            if flag.present:
                raise InputError(f"--{flag.name}={flag.value}: {reason}; leave it out")


def _evaluate_images(evaluator: Evaluator, path: Path, out: epath.Path) -> dict[str, Any]:
    if REFERENCE.value in SPLITS:
        raise InputError("--images needs --reference=<folder of images, or .npz> to compare with")
    _check_path(IMAGES)
    _check_path(REFERENCE)
    images = open_images(path)
    setup_logging(out)
    reference = evaluator.reference(Path(REFERENCE.value or ""))
    _export(evaluator, reference)
    return {"images": evaluate_images(evaluator, images, reference)}


def _evaluate_run(evaluator: Evaluator, workdir: epath.Path, out: epath.Path) -> dict[str, Any]:
    """The entries of metrics.json; each is written as soon as it is there."""
    run = EvaluatedRun(workdir, evaluator, DECODER.value)
    results: dict[str, Any] = {}
    setup_logging(workdir)
    samples = _Samples(run) if "generation" in WHAT.value else None
    if "reconstruction" in WHAT.value:
        name = entry_name("reconstruction", run.models.other_decoder)
        results[name] = evaluate_reconstructions(run, SPLIT.value, LIMIT.value)
        write_results(out, results)
    if samples:
        for acceptance in samples.rejections:
            name = entry_name("generation", run.models.other_decoder, acceptance)
            results[name] = samples.evaluate(acceptance)
            write_results(out, results)
    return results


class _Samples:
    """The samples to draw, and their reference; bad input is found before long work."""

    def __init__(self, run: EvaluatedRun):
        self.run = run
        self.sampling = run.models.sampling(**SAMPLING.given())
        condition = run.models.condition
        classes, captioned = condition.classes, condition.asked_by == "caption"
        self.conditions = run.models.conditions(NUM.value)
        if LABELS.value == "data" and not (classes or captioned):
            raise InputError("--labels=data: this run's prior is told no classes; leave it out")
        if LABELS.value == "balanced" and captioned:
            raise InputError(
                "--labels=balanced: this run's prior is told captions, those of the reference;"
                " leave it out"
            )
        self.labels = LABELS.value or ("data" if captioned else "balanced")
        self.rejections = {
            acceptance: SAMPLING.rejection(acceptance, len(classes), self.conditions)
            for acceptance in map(_acceptance, ACCEPTANCE.value)
        }
        if EXPORT_SAMPLES.value and len(self.rejections) > 1:
            raise InputError("--export_samples takes one --acceptance at a time")
        if EXPORT_SAMPLES.value and PIXELS.value != "png":
            raise InputError("--export_samples writes 8 bits: it needs --pixels=png")
        _check_path(REFERENCE, SPLITS)
        if EXPORT_REFERENCE_IMAGES.value and REFERENCE.value not in SPLITS:
            raise InputError("--export_reference_images writes a split: --reference=train or so")
        # Weights that are missing are missed now.
        _ = run.models.tokenizer_variables, run.models.prior_variables
        self.classifier = None
        if len(classes) == 1000:
            self.classifier = SAMPLING.build_classifier()
        if self.labels == "data" and REFERENCE.value not in SPLITS:
            told = "a prior that is told captions" if captioned else "--labels=data"
            what = "captions" if captioned else "classes"
            raise InputError(f"{told} needs a reference with {what}: a split of the data")
        self.reference = self._reference()
        if captioned:
            limit = REFERENCE_NUM.value or None
            self.conditions = run.split_conditions(REFERENCE.value, limit, NUM.value)
        elif self.labels == "data":
            labels = np.resize(np.asarray(self.reference.labels), NUM.value)
            self.conditions = labels.astype(np.int32)[:, None]

    def _reference(self) -> Reference:
        if REFERENCE.value in SPLITS:
            limit = REFERENCE_NUM.value or None
            reference = self.run.reference(REFERENCE.value, limit)
            if EXPORT_REFERENCE_IMAGES.value:
                file = Path(EXPORT_REFERENCE_IMAGES.value)
                self.run.export_split(REFERENCE.value, limit, reference, file)
        else:
            reference = self.run.evaluator.reference(Path(REFERENCE.value))
        _export(self.run.evaluator, reference)
        return reference

    def evaluate(self, acceptance: float) -> dict[str, Any]:
        """The entry of an acceptance rate."""
        condition = self.run.models.condition
        told = condition.classes or condition.asked_by == "caption"
        extra: dict[str, Any] = {"labels": self.labels} if told else {}
        if self.rejections[acceptance] or self.classifier:
            classifier = SAMPLING.build_classifier()
            extra["classifier"] = {
                "name": classifier.name,
                "weights": digest(classifier.variables),
                "score": SAMPLING.score.value,
            }
        return evaluate_samples(
            self.run,
            self.conditions,
            self.sampling,
            self.reference,
            seed=SEED.value,
            rejection=self.rejections[acceptance],
            classifier=self.classifier,
            extra_protocol=extra,
            export=Path(EXPORT_SAMPLES.value) if EXPORT_SAMPLES.value else None,
        )


def _check_path(flag: flags.FlagHolder[Any], names: Sequence[str] = ()) -> None:
    """Raises InputError if a flag is none of the names, no folder and no file."""
    if flag.value not in names and not Path(flag.value).exists():
        expected = "".join(f"{name}, " for name in names)
        raise InputError(
            f"--{flag.name}={flag.value}: no such folder or file; {expected}a folder of images or"
            " an .npz of ADM's is needed"
        )


def _acceptance(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--acceptance={text}: fractions like 1,0.5 are needed") from None


def _export(evaluator: Evaluator, reference: Reference) -> None:
    if EXPORT_REFERENCE.value:
        write_statistics(Path(EXPORT_REFERENCE.value), reference.gaussian, evaluator.network.name)
