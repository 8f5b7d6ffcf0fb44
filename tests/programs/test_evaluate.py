"""vqjax evaluate: its numbers, its protocol, stopped and given again, what it refuses."""

import copy
import functools
import json
import re

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_network
from etils import epath
from PIL import Image
from tiny_condition import LettersCondition

from vqjax.conditions import CONDITIONS, ClassCondition
from vqjax.data import build_source
from vqjax.evaluation import pair_metrics
from vqjax.evaluation.metrics.frechet import fit, frechet_distance
from vqjax.evaluation.protocol import digest, protocol_hash, source_digest
from vqjax.evaluation.rows import Rows
from vqjax.generation.run import Run
from vqjax.parallel import make_mesh
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.workdir import write_condition, write_config
from vqjax.tokens import Tokens
from vqjax.training.stage_kinds import build_stage

FD = "FD-lite1"


build_network = functools.cache(tiny_network.build)
measurer = functools.cache(pair_metrics.measurer)


@functools.cache
def trained():
    """The models of the finished run, read once for all tests."""
    run = Run(tiny.finished_run().workdir, make_mesh({"data": -1}))
    _ = run.tokenizer_variables, run.prior_variables
    return run


def make_run(workdir, mesh, decoder):
    """As `Run`; the finished run's has a config of its own, which a command may change."""
    if workdir != tiny.finished_run().workdir:
        return Run(workdir, mesh, decoder)
    run = copy.copy(trained())
    run.config = run.config.copy_and_resolve_references()
    return run


@pytest.fixture(autouse=True)
def small_models(tmp_path, monkeypatch):
    """A small network, programs that all tests share, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = command_runs._load("evaluate")[0]
    monkeypatch.setattr(module, "build_network", build_network)
    monkeypatch.setattr("vqjax.evaluation.evaluated_run.Run", make_run)
    monkeypatch.setattr(pair_metrics, "measurer", measurer)
    monkeypatch.setattr(
        "vqjax.programs.sampling_flags.imagenet_classifier", tiny_network.classifier
    )


def evaluate(out, *flags, workdir=True):
    own = [f"--workdir={tiny.finished_run().workdir}"] if workdir else []
    return command_runs.call("evaluate", *own, f"--out={out}", "--batch_size=8", *flags)


def results(out):
    return json.loads((out / "metrics.json").read_text())


def held_out():
    source = build_source(tiny.finished_run().config.data.source, "validation", 16)
    return np.stack([source[i]["image"] for i in range(len(source))])


def test_results_of_two_decoders_stand_side_by_side(tmp_path):
    workdir = tiny.run_with_a_decoder(tmp_path / "run")
    flags = [f"--workdir={workdir}", "--what=reconstruction", "--bootstrap=0"]
    for decoder in ("tokenizer", "decoder"):
        flag = f"--decoder={decoder}"
        assert evaluate(tmp_path, *flags, flag, workdir=False) == 0
    found = results(tmp_path)
    assert set(found) == {"reconstruction", "reconstruction, decoder tokenizer"}
    entries = [found[f"reconstruction{of}"] for of in ("", ", decoder tokenizer")]
    decoders = [entry["protocol"]["tokenizer"]["decoder"] for entry in entries]
    assert decoders == ["decoder", "tokenizer"]
    usage, psnr = ([e["metrics"][name] for e in entries] for name in ("codebook usage", "PSNR"))
    assert usage[0] == usage[1] and psnr[0] != psnr[1]
    text = (tmp_path / "metrics.txt").read_text()
    assert "tokenizer.decoder: decoder" in text and "tokenizer.decoder: tokenizer" in text


def test_reconstruction(tmp_path):
    assert evaluate(tmp_path, "--what=reconstruction", "--per_class") == 0
    entry = results(tmp_path)["reconstruction"]
    images = held_out()
    apply = jax.jit(trained().tokenizer.apply, static_argnames="method")
    variables = trained().tokenizer_variables
    x = jnp.asarray(images.astype(np.float32) / 127.5 - 1)
    tokens = apply(variables, x, method="encode")
    made = np.asarray(apply(variables, Tokens.dense(tokens.code_map), method="decode"))
    made = np.round((np.clip(made, -1, 1).astype(np.float64) + 1) * 127.5)
    error = (made - images) / 127.5
    psnr = 10 * np.log10(4 / np.mean(error**2, axis=(1, 2, 3)))
    metrics, count = entry["metrics"], len(images)
    assert metrics["PSNR"] == pytest.approx(psnr.mean(), rel=1e-4)
    assert metrics["l1"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert metrics["l2"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert entry["spread"]["PSNR"] == pytest.approx(psnr.std(ddof=1) / np.sqrt(count), rel=1e-3)
    assert metrics["codebook usage"] == len(np.unique(tokens.codes)) / 32
    sets = (fit(tiny_network.features(x)) for x in (images, made))
    assert metrics["rFD-lite1"] == pytest.approx(frechet_distance(*sets), rel=1e-3)
    # Classes are in turn, so three of the seven images are of the first one.
    assert [row["images"] for row in entry["per_class"].values()] == [3, 2, 2]
    means = [row["images"] * row["PSNR"] for row in entry["per_class"].values()]
    assert sum(means) / count == pytest.approx(metrics["PSNR"])
    assert "rFD-lite1" in entry["per_class"]["discs"]
    table = (tmp_path / "metrics.txt").read_text()
    assert f"{metrics['PSNR']:.6g}" in table and "images.split: validation" in table
    assert entry["protocol_sha256"] == protocol_hash(entry["protocol"])
    # What is kept of each image depends on the tokenizer, the data and what measures, the numbers
    # also on the metrics of the set.
    names = "evaluation.references", "evaluation.pair_metrics", "tokenizers.efficient_vqgan"
    names += "data.folder", "data.pipeline"
    code = source_digest(*(f"vqjax.{name}" for name in names))
    assert entry["protocol"]["code"] == code
    code = source_digest("vqjax.evaluation.set_metrics")
    assert entry["protocol"]["metrics"]["code"] == code


def test_a_run_of_a_tokenizer_alone(tmp_path, capsys):
    """It has no settings of sampling, which the batch size is taken from elsewhere."""
    run = tiny.finished_run()
    config = run.config.copy_and_resolve_references()
    config.tokenizer.use_from, config.stages = str(run.workdir), ("tokenizer",)
    for name in ("prior", "sampling"):
        del config[name]
    write_config(config, tmp_path / "run")
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--bootstrap=0"]
    assert command_runs.call("evaluate", *flags, "--what=reconstruction", "--limit=4") == 0
    entry = results(tmp_path / "out")["reconstruction"]
    assert entry["protocol"]["batch_size"] == 64 and entry["metrics"]["PSNR"] > 0
    assert command_runs.call("evaluate", *flags) == 2
    assert "is a run without a prior" in capsys.readouterr().err.splitlines()[-1]


def test_generation_and_its_samples_scored_as_a_file(tmp_path):
    exports = f"--export_samples={tmp_path}/s.npz", f"--export_reference={tmp_path}/r.npz"
    assert evaluate(tmp_path, "--what=generation", "--num=20", *exports) == 0
    entry = results(tmp_path)["generation"]
    with np.load(tmp_path / "s.npz") as samples:
        pixels, labels = samples["arr_0"], samples["arr_1"]
    np.testing.assert_array_equal(labels, np.arange(20) % 3)
    source = build_source(tiny.finished_run().config.data.source, "train", 16)
    train = np.stack([source[i]["image"] for i in range(len(source))])
    sets = (fit(tiny_network.features(x)) for x in (pixels, train))
    metrics = entry["metrics"]
    assert metrics[FD] == pytest.approx(frechet_distance(*sets), rel=1e-3)
    assert {"KD-lite1", "IS-lite1", "precision-lite1", "class accuracy-lite1"} <= metrics.keys()
    assert entry["interval"][FD][0] <= metrics[FD] <= entry["interval"][FD][1]
    assert entry["by_count"]["counts"][-1] == 20
    assert entry["by_count"]["distances"][-1] == metrics[FD]
    assert entry["throughput"]["sampled images/s"] > 0
    assert entry["protocol"]["sampler"]["labels"] == "balanced"
    assert entry["protocol"]["reference"]["count"] == tiny.TRAIN_IMAGES

    flags = f"--images={tmp_path}/s.npz", f"--reference={tmp_path}/r.npz"
    assert evaluate(tmp_path / "file", *flags, workdir=False) == 0
    again = results(tmp_path / "file")["images"]
    assert again["metrics"][FD] == metrics[FD]
    assert again["metrics"]["IS-lite1"] == metrics["IS-lite1"]
    assert "KD-lite1" not in again["metrics"]
    assert any("need images, not their statistics" in note for note in again["notes"])


def test_the_same_protocol_gives_the_same_digits_and_another_one_says_so(tmp_path):
    def numbers(name, *flags):
        assert evaluate(tmp_path / name, "--num=12", *flags) == 0
        found = results(tmp_path / name)
        return [{k: found[w][k] for k in ("metrics", "spread", "protocol_sha256")} for w in found]

    first = numbers("a")
    assert numbers("b") == first
    seen = [[entry["protocol_sha256"] for entry in first]]
    # In one folder: rows of another protocol are not taken for theirs.
    for flag in ("--seed=1", "--pixels=float", "--bootstrap=3", "--temperature=0.5"):
        seen.append([entry["protocol_sha256"] for entry in numbers("a", flag)])
    generation = [hashes[-1] for hashes in seen]
    assert len(set(generation)) == len(generation)
    # The sampler's settings are no part of what reconstructions depend on.
    assert seen[1][0] == seen[4][0] == seen[0][0] != seen[2][0]
    # Evaluations of one kind do not take away those of the other.
    assert evaluate(tmp_path / "a", "--what=reconstruction") == 0
    assert set(results(tmp_path / "a")) == {"reconstruction", "generation"}


@pytest.mark.parametrize(
    ("acceptance", "stops"),
    [
        pytest.param("1", (0, 1, 3), id="all"),
        pytest.param("0.5", (1, 3, 6, 8), id="half", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_evaluation_goes_on_and_ends_alike(tmp_path, monkeypatch, acceptance, stops):
    flags = "--num=20", "--score=confidence", f"--acceptance={acceptance}"
    assert evaluate(tmp_path / "whole", *flags) == 0
    append = Rows.append
    appended = []

    def append_or_stop(self, rows, finished=False):
        if stops and len(appended) == stops[0]:
            raise KeyboardInterrupt
        append(self, rows, finished)
        appended.append(self.folder.name.split("-")[0])

    monkeypatch.setattr(Rows, "append", append_or_stop)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "parts", *flags)
        stops = stops[1:]
    assert evaluate(tmp_path / "parts", *flags) == 0
    # Every batch once; the features of the reference are in the cache already.
    kinds = ["reconstruction"] + ["candidates"] * (5 * (acceptance != "1")) + ["generation"] * 3
    assert appended == kinds
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for what in whole:
        for key in ("metrics", "spread", "by_count", "protocol_sha256"):
            assert whole[what][key] == parts[what][key]


def test_acceptance_rates_have_entries_of_their_own(tmp_path):
    flags = "--what=generation", "--num=20", "--score=confidence", "--acceptance=1,0.5"
    assert evaluate(tmp_path, *flags) == 0
    found = results(tmp_path)
    assert set(found) == {"generation", "generation, acceptance 0.5"}
    assert found["generation"]["metrics"][FD] != found["generation, acceptance 0.5"]["metrics"][FD]
    half = found["generation, acceptance 0.5"]
    sampler = half["protocol"]["sampler"]
    assert sampler["acceptance"] == 0.5
    weights = tiny_network.classifier().variables
    assert sampler["classifier"]["weights"] == digest(weights)
    # Twice as many images are drawn for them.
    whole, kept = (entry["throughput"]["sampled images/s"] for entry in found.values())
    assert kept > 0 and whole > 0
    # The classifier has the name of the network.
    assert any("chose the samples and scores them" in note for note in half["notes"])
    assert not any("chose the samples" in note for note in found["generation"]["notes"])
    # Given again it measures no time, and keeps what was measured.
    assert evaluate(tmp_path, *flags) == 0
    assert results(tmp_path) == found


def test_classes_of_the_data_and_numbers_of_each(tmp_path):
    def entry(number):
        flags = "--what=generation", "--num=12", "--labels=data", "--per_class"
        assert evaluate(tmp_path, *flags, f"--reference_num={number}") == 0
        return results(tmp_path)["generation"]

    first, second = entry(9), entry(10)
    # Other classes are other samples, though the sampler is told nothing else.
    classes = [e["protocol"]["sampler"]["conditions"] for e in (first, second)]
    assert classes[0] != classes[1] and first["metrics"] != second["metrics"]
    assert len(list(tmp_path.glob("generation-*"))) == 2
    rows = first["per_class"]
    assert sum(row["images"] for row in rows.values()) == 12
    assert sum(row["reference images"] for row in rows.values()) == 9
    assert all(FD in row for row in rows.values())
    smallest = r"FD-lite1 by class, the smallest: [23] images are too few for 6 dimensions"
    assert any(re.search(smallest, note) for note in first["notes"])


@pytest.fixture(scope="module")
def of_1000_ids(tmp_path_factory):
    """A run whose prior knows 1000 classes, and has not learnt anything."""
    run = tiny.finished_run()
    config = run.config.copy_and_resolve_references()
    config.tokenizer.use_from = str(run.workdir)
    workdir = tmp_path_factory.mktemp("of_1000_ids") / "run"
    write_config(config, workdir)
    condition = ClassCondition(tuple(f"class {i}" for i in range(1000)))
    write_condition(workdir, condition)
    stage = build_stage(config, "prior", epath.Path(workdir), condition)
    checkpointer = Checkpointer(workdir / "prior" / "checkpoints")
    checkpointer.save(1, jax.jit(stage.init)(jax.random.key(0)))
    checkpointer.close()
    return workdir


def test_ids_of_a_text_are_no_classes(of_1000_ids, tmp_path, monkeypatch, capsys):
    """Of one letter, too, from an alphabet of 1000, the number of classes of ImageNet."""
    monkeypatch.setitem(CONDITIONS, "letters", LettersCondition)
    letters = LettersCondition(1, "".join(map(chr, range(1000))))
    monkeypatch.setattr(Run, "condition", letters)
    flags = [f"--workdir={of_1000_ids}", "--what=generation", "--num=16", "--per_class"]
    exported = f"--export_samples={tmp_path}/s.npz"
    assert evaluate(tmp_path / "out", *flags, exported, workdir=False) == 0
    entry = results(tmp_path / "out")["generation"]
    assert not any("accuracy" in name or "top-" in name for name in entry["metrics"])
    assert not entry["per_class"]
    assert "no numbers by class: the prior is told no classes" in entry["notes"]
    with np.load(tmp_path / "s.npz") as samples:
        assert list(samples) == ["arr_0"]
    # The texts count for the protocol all the same.
    assert entry["protocol"]["sampler"]["conditions"] == digest(letters.in_turn(16))
    for flag, expected in [("labels=data", "is told no classes"), ("acceptance=0.5", "--score=l")]:
        assert evaluate(tmp_path / "out", *flags, f"--{flag}", workdir=False) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]


def test_accuracy_on_the_classes_of_imagenet(of_1000_ids, tmp_path):
    workdir = of_1000_ids
    classify = tiny_network.classifier()
    flags = "--what=generation", "--num=16", f"--export_samples={tmp_path}/s.npz"
    assert evaluate(tmp_path / "out", f"--workdir={workdir}", *flags, workdir=False) == 0
    metrics = results(tmp_path / "out")["generation"]["metrics"]
    with np.load(tmp_path / "s.npz") as samples:
        means = samples["arr_0"].mean((1, 2)) / 127.5 - 1
    order = np.argsort(-means @ classify.variables, axis=1)
    hits = order == np.arange(16)[:, None]
    assert metrics["top-1 (efficientnet_lite1)"] == hits[:, 0].mean()
    assert metrics["top-5 (efficientnet_lite1)"] == hits[:, :5].any(1).mean()


def test_a_folder_scores_as_its_npz_does_and_a_split_comes_back(tmp_path):
    images = held_out()
    np.savez(tmp_path / "held.npz", images)
    (tmp_path / "held").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "held" / f"{i}.png")
    flags = "--what=generation", "--num=8", f"--export_reference_images={tmp_path}/train.npz"
    assert evaluate(tmp_path / "run", *flags) == 0
    with np.load(tmp_path / "train.npz") as reference:
        assert reference["arr_0"].shape == (tiny.TRAIN_IMAGES, 16, 16, 3)
        np.testing.assert_array_equal(np.bincount(reference["arr_1"]), [8, 8, 8])
        sets = (fit(tiny_network.features(x)) for x in (images, reference["arr_0"]))
        expected = frechet_distance(*sets)
    found = []
    for name in ("held", "held.npz"):
        flags = f"--images={tmp_path}/{name}", f"--reference={tmp_path}/train.npz"
        assert evaluate(tmp_path / "out" / name, *flags, workdir=False) == 0
        found.append(results(tmp_path / "out" / name)["images"])
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["metrics"][FD] == pytest.approx(expected, rel=1e-3)
    # Other contents of the same size are other images.
    Image.fromarray(255 - images[0]).save(tmp_path / "held" / "0.png")
    flags = f"--images={tmp_path}/held", f"--reference={tmp_path}/train.npz"
    assert evaluate(tmp_path / "out" / "held", *flags, workdir=False) == 0
    assert results(tmp_path / "out" / "held")["images"]["metrics"] != found[0]["metrics"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workdir=@"], "give --workdir=<folder of a run>, or --images"),
        (["--what=everything"], "--what=everything: .*reconstruction"),
        (["--num=1"], "--num=1: at least 2"),
        (["--bootstrap=1"], "--bootstrap=1: 0 for none, or at least 2"),
        (["--batch_size=3"], "batch_size=3: a multiple of the 8 devices"),
        (["--acceptance=half"], "--acceptance=half: fractions like 1,0.5"),
        (["--acceptance=1.5", "--score=confidence"], "acceptance=1.5"),
        (["--acceptance=0.5"], "--score=confidence"),
        (["--guidance=2"], "never seen the null condition"),
        (["--reference=nowhere"], "--reference=nowhere: no such .* train, validation, a folder"),
        (["--export_samples=a.npz", "--pixels=float"], "--export_samples .* needs --pixels=png"),
        (["--export_samples=a"], "--export_samples=a: the name of an .npz"),
        (["--export_reference_images=a.npz", "--reference=tests"], "writes a split"),
        (["--reference_num=-5"], "--reference_num=-5: 0 for all"),
        (["--what="], "--what= is empty"),
        (["--acceptance="], "--acceptance= is empty"),
        (["--resize=tf"], "--resize=tf: it is for --network=inception, not efficientnet_lite1"),
        (["--what=reconstruction", "--seed=1"], "--seed=1: it is for generation"),
        (["--what=generation", "--limit=9"], "--limit=9: it is for reconstruction"),
        (["--labels=data", "--reference=tests"], "--labels=data needs a reference with classes"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_input_is_one_line(tmp_path, flags, expected, capsys):
    if flags[0] == "--workdir=@":
        flags = ["--images=x"]
    num = [] if "--what=reconstruction" in flags else ["--num=8"]
    assert evaluate(tmp_path, *num, *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(expected, error), error
    # Found before any work begins, that on the reconstructions too.
    assert not (tmp_path / "metrics.json").exists()


def test_images_of_others_need_a_reference(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(held_out()[i]).save(tmp_path / f"{i}.png")
    assert evaluate(tmp_path / "out", f"--images={tmp_path}", workdir=False) == 2
    assert "--images needs --reference" in capsys.readouterr().err


def test_a_network_whose_features_are_not_finite(tmp_path, capsys, monkeypatch):
    network = tiny_network.build()
    network.variables["in"][:] = np.nan
    module = command_runs._load("evaluate")[0]
    monkeypatch.setattr(module, "build_network", lambda *_: network)
    assert evaluate(tmp_path, "--what=reconstruction") == 2
    assert re.search("features of image 0 is not finite", capsys.readouterr().err)
