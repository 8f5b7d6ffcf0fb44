"""The report of a run: complete, self-contained, true to the numbers, readable by any browser."""

import collections
import json
import re
import shutil

import command_runs
import pytest
import tiny
import tiny_network
from html_page import Page

from vqjax.conditions import ClassCondition
from vqjax.generation.run import Run
from vqjax.report.page import Missing
from vqjax.runs.workdir import write_condition, write_config

SECTIONS = ["metrics", "reconstructions", "samples", "neighbours", "codebook", "training"]
SECTIONS += ["parameters", "config"]
CLASSES = ("<i>checks</i>", "discs & rings", 'the "stripes"')
METRICS = {
    "reconstruction": {
        "metrics": {"PSNR": 20.312345678901234, "l2": 1.25e-05, "rFD-lite1": 1234.5678},
        "spread": {"PSNR": 0.1234567},
        "notes": ["7 images < 1280 dimensions"],
        "protocol": {"images": 7, "network": {"name": "lite1", "sizes": [1, 2]}},
        "protocol_sha256": "ab" * 32,
    },
    "generation": {
        "metrics": {"FD-lite1": 98.7654321, "IS-lite1": 2.5, "precision-lite1": 0.625},
        "interval": {"FD-lite1": [95.25, 102.125]},
        "by_count": {
            "metric": "FD-lite1",
            "counts": [4, 6, 12],
            "distances": [120.5, 110.0, 98.7],
            "infinity": 77.125,
        },
        "per_class": {CLASSES[1]: {"images": 3, "FD-lite1": 41.5}, "other": {"images": 1}},
        "protocol": {"images": 12},
        "protocol_sha256": "cd" * 32,
    },
}


def report(workdir, *flags):
    """The page of a run, with a network that is quick to compile."""
    command_runs._load("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqjax.programs.report.build_network", tiny_network.build)
        assert command_runs.call("report", f"--workdir={workdir}", *flags) == 0
    return (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A copy of the finished run, evaluated, whose classes have names that HTML would mistake."""
    folder = tmp_path_factory.mktemp("report") / "a run"
    shutil.copytree(tiny.finished_run().workdir, folder)
    write_condition(folder, ClassCondition(CLASSES))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(METRICS))
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    return report(workdir, "--samples=6", "--neighbours=4")


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert max(collections.Counter(parsed.ids).values()) == 1
    for reference in parsed.references:
        assert reference.startswith(("data:image/png;base64,", "#"))
        assert reference[0] != "#" or reference[1:] in parsed.ids
    for name, value in parsed.attributes:
        assert "http:" not in (value or "") and "https:" not in (value or ""), name
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert "@import" not in page


def test_everything_is_there(page, workdir):
    parsed = Page(page)
    assert [i for i in parsed.ids if i in SECTIONS] == SECTIONS
    assert "Left out" not in page
    counts = parsed.counts
    # All 7 held-out images and their reconstructions; 2 samples of each class; 4 of them with 5
    # neighbours each.
    assert counts["reconstructions", "img"] == 2 * tiny.VALIDATION_IMAGES
    assert counts["samples", "img"] == 6
    assert counts["neighbours", "img"] == 4 * 6
    assert counts["codebook", "svg"] == 2 and counts["neighbours", "svg"] == 1
    assert (
        "over the whole validation split (7 images, 112 tokens)" in parsed.texts["codebook"].lower()
    )
    training = parsed.texts["training"]
    for title in ("Weight of the adversary", "Accuracy of the discriminator", "Learning rate"):
        assert title in training
    assert training.count("Gradient norms") == 2  # both stages
    assert "adversary starts" in training
    # Each setting is in the config's tables.
    assert "restart_below" in parsed.texts["config"] and "query_blocks_per_image" in page
    assert not (workdir / ".report.html.partial").exists()


def test_numbers_are_those_of_the_evaluation(page):
    rows = {head.split()[0]: values for head, values in Page(page).rows if values}
    for found in METRICS.values():
        for name, value in found["metrics"].items():
            expected = [
                value,
                found.get("spread", {}).get(name),
                *found.get("interval", {}).get(name, ()),
            ]
            assert rows[name] == [x for x in expected if x is not None]
    assert rows["discs"] == [3, 41.5] and rows["other"] == [1]
    texts = Page(page).texts["metrics"]
    for shown in ("20.31", "± 0.1235", "1,235", "1.25e-05", "95.25 to 102.1", "ab" * 32):
        assert shown in " ".join(texts.split())
    assert "7 images < 1280 dimensions" in texts and "↑" in texts
    assert "rFD-lite1 1,235" in page and "FD-lite1 98.77 (95.25 to 102.1)" in page


def test_names_are_escaped(page):
    assert "<i>" not in page
    samples = Page(page).texts["samples"]
    assert all(name in samples for name in CLASSES)


def test_a_run_with_only_a_tokenizer(tmp_path):
    run = tiny.finished_run()
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder, ignore=shutil.ignore_patterns("prior"))
    parsed = Page(report(folder))
    for section in ("samples", "neighbours", "parameters", "training"):
        text = parsed.texts[section]
        assert f"there is no trained prior in {folder}: run train.py" in text
    metrics = parsed.texts["metrics"]
    assert f"not evaluated yet: vqjax evaluate --workdir={folder} --what=generation" in metrics
    assert parsed.counts["reconstructions", "img"] == 2 * tiny.VALIDATION_IMAGES
    assert parsed.counts["codebook", "svg"] == 2 and parsed.counts["training", "svg"] > 8
    assert "last evaluation in training" in parsed.texts[""]


def test_a_run_whose_images_are_gone(tmp_path):
    folder = tmp_path / "run"
    ignored = shutil.ignore_patterns("prior")
    shutil.copytree(tiny.finished_run().workdir, folder, ignore=ignored)
    write_config(tiny.get_config("path=/nowhere"), folder)
    parsed = Page(report(folder))
    for section in ("reconstructions", "codebook"):
        assert "Left out" in parsed.texts[section] and "/nowhere" in parsed.texts[section]
    assert parsed.counts["training", "svg"] > 8


def test_stages_that_no_image_is_made_with(tmp_path):
    """The first of two tokenizers, and the first of two priors."""
    module = command_runs._load("report")[0]
    two = Run(tiny.run_with_two_of_each(tmp_path / "run"), tiny.one_device())
    stages = [module._stage(two, name) for name in ("coarse", "coarse_prior")]
    assert [stage.step for stage in stages] == [9, 9]
    assert [stage.model for stage in stages] == ["efficient_vqgan", "multigrained"]


def test_the_metrics_of_a_page_are_those_of_its_decoder(tmp_path):
    module = command_runs._load("report")[0]
    workdir = tiny.run_with_a_decoder(tmp_path / "run")
    (workdir / "evaluation").mkdir()
    kept = {"generation, decoder tokenizer": METRICS["generation"]}
    (workdir / "evaluation" / "metrics.json").write_text(json.dumps(kept))
    default, other = (Run(workdir, tiny.one_device(), name) for name in ("", "tokenizer"))
    found = module._evaluations(default)
    assert set(found) == {"reconstruction", "generation", "generation, decoder tokenizer"}
    assert isinstance(found["generation"], Missing)
    found = module._evaluations(other)
    assert found["generation, decoder tokenizer"].metric("FD").value == 98.7654321
    missing = found["reconstruction, decoder tokenizer"].sentence
    assert f"--workdir={workdir} --what=reconstruction --decoder=tokenizer writes" in missing


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workdir={}/nothing"], "nothing is not the folder of a run"),
        (["--workdir={}/untrained"], "there is no trained tokenizer in"),
        (["--workdir={}/untrained", "--samples=0"], "--samples=0: at least 1 is needed"),
        (["--workdir={0}/untrained", "--out={0}"], "this is a folder, an HTML file is needed"),
    ],
)
def test_wrong_input(flags, expected, tmp_path, capsys):
    write_config(tiny.get_config("path=x"), tmp_path / "untrained")
    assert command_runs.call("report", *(flag.format(tmp_path) for flag in flags)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and expected in last
    assert not list(tmp_path.rglob("*.html"))
