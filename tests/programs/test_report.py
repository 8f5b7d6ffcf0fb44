"""The report of a run: complete, self-contained, true to the numbers, readable by any browser."""

import collections
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vqjax.conditions import ClassCondition
from vqjax.data import build_source, evaluation_batches
from vqjax.evaluation.feature_networks import FeatureNetwork
from vqjax.generation.run import Run
from vqjax.report import charts, codebook, curves, neighbours, tables
from vqjax.runs.workdir import write_condition, write_config

VOID = {"meta", "img", "br", "hr", "link", "input"}
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


class Page(HTMLParser):
    """What a page holds; fails where its elements are not balanced, or one says nothing."""

    NEEDED = {"img": "alt", "svg": "aria-label", "th": "scope", "html": "lang"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.attributes = [], [], [], []
        self.texts = collections.defaultdict(str)  # by section
        self.counts = collections.Counter()  # of elements, by section and name
        self.rows = []  # of tables: text of the head, numbers of the data elements
        self.feed(text)
        self.close()
        assert not self.open

    @property
    def section(self):
        return next((value for name, value in reversed(self.open) if name == "section"), "")

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes)
        self.attributes += attributes
        if name in self.NEEDED:
            assert given.get(self.NEEDED[name]), name
        self.ids += [given["id"]] if "id" in given else []
        self.references += [given[key] for key in ("src", "href") if key in given]
        self.counts[self.section, name] += 1
        if name == "tr":
            self.rows.append(["", []])
        if name == "data":
            self.rows[-1][1].append(float(given["value"]))
        if name not in VOID:
            self.open.append((name, given.get("id")))

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        self.texts[self.section] += text
        names = [name for name, _ in self.open]
        if "th" in names and "tr" in names:
            self.rows[-1][0] += text


def fake_network():
    """Features are the pixels of a shrunk image."""

    def apply(variables, images):
        features = jax.image.resize(images, (len(images), 4, 4, 3), "linear").reshape(-1, 48)
        return features, features[:, :10]

    return FeatureNetwork("fake", 48, 10, apply, {}, {})


def report(workdir, *flags):
    """The page of a run, with a network that is quick to compile."""
    command_runs._load("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqjax.programs.report.build_network", fake_network)
        assert command_runs.call("report", f"--workdir={workdir}", *flags) == 0
    return (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def run(workdir):
    return Run(workdir, tiny.one_device())


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


def test_copies_of_training_images_show():
    data = tiny.finished_run().config.data
    training = build_source(data.source, "train", 16)
    rng = np.random.default_rng(0)
    copied = [3, 17]
    noise = rng.integers(0, 256, (38, 16, 16, 3), np.uint8)
    samples = np.concatenate([np.stack([training[i]["image"] for i in copied]), noise])
    held_out = build_source(data.source, "validation", 16)
    network = fake_network()
    found = neighbours.find(
        network,
        samples,
        [0, 1, 2],
        training,
        evaluation_batches(training, tiny.CONDITION, tiny.DATA, batch_size=8),
        evaluation_batches(held_out, tiny.CONDITION, tiny.DATA, batch_size=4),
        31,
    )
    assert (found.scanned, found.available, found.held_out) == (24, 24, 7)
    for (sample, near), distance in zip(found.rows[:2], (0, 0), strict=False):
        assert near[0][1] == distance and near[0][0].uri == sample.uri
        distances = [d for _, d in near]
        assert distances == sorted(distances) and distances[1] > 0
    assert found.rows[2][1][0][1] > 0
    # What held-out images are at, by another way.
    images = np.stack([example["image"] for example in (*training, *held_out)])
    pool = np.asarray(network(jnp.asarray(images) / 127.5 - 1.0)[0], np.float64)
    apart = np.linalg.norm(pool[24:, None] - pool[None, :24], axis=-1).min(axis=1)
    assert found.medians[1] == pytest.approx(np.median(apart), rel=1e-5)
    assert found.low == pytest.approx(np.quantile(apart, 0.05), rel=1e-5)
    assert found.near == 2 / 40 and found.near_held_out == 1 / 7 and found.twins == 0


def test_the_codebook_is_counted_over_valid_images(run):
    data = tiny.finished_run().config.data
    source = build_source(data.source, "validation", 16)
    batches = evaluation_batches(source, tiny.CONDITION, tiny.DATA, batch_size=4)
    found = codebook.inspect(run, batches)
    images = np.stack([source[i]["image"] for i in range(7)]) / np.float32(127.5) - 1
    _, tokens, *_ = jax.jit(run.tokenizer.apply)(run.tokenizer_variables, images)
    _, counts = np.unique(np.asarray(tokens.codes), return_counts=True)
    p = counts / counts.sum()
    assert (found.images, found.tokens, found.used) == (7, 7 * 16, len(counts))
    assert found.perplexity == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-5)


def test_principal_components():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 5
    points, shares = codebook.principal_components(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    for i in range(2):
        expected = (vectors - vectors.mean(0)) @ directions[:, -1 - i]
        np.testing.assert_allclose(np.abs(points[:, i]), np.abs(expected), atol=1e-9)
    # Another start of the same directions gives the same picture.
    np.testing.assert_allclose(codebook.principal_components(vectors[::-1])[0][::-1], points)
    # One number a code: there is but one component.
    assert codebook.principal_components(vectors[:, :1])[1].tolist() == [1.0, 0.0]
    # Codes that are all alike are at one point.
    for same in (vectors[:1], np.repeat(vectors[:1], 4, axis=0).round()):
        points, shares = codebook.principal_components(same)
        assert not points.any() and not shares.any()


def test_parameters_add_up(run):
    variables = run.tokenizer_variables
    rows = tables.parameters(variables)
    trained = [row for row in rows if row.share is not None]
    tops = [row for row in trained if row.level == 0]
    total = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert tables.size(variables) == sum(row.size for row in tops) == total
    assert sum(row.share for row in tops) == pytest.approx(1)
    assert sum(row.arrays for row in tops) == len(jax.tree.leaves(variables["params"]))
    encoder = [row.module for row in trained].index("encoder")
    parts = trained[encoder + 1 :]
    inner = parts[: next((i for i, row in enumerate(parts) if row.level == 0), len(parts))]
    assert sum(row.size for row in inner) == trained[encoder].size
    assert any("quantizer (state)" in row.module for row in rows)


def test_names_with_numbers_are_in_their_order():
    variables = {"params": {f"block_{i}": {"kernel": np.zeros(i)} for i in range(1, 12)}}
    modules = [row.module for row in tables.parameters(variables)]
    assert modules == [f"block_{i}" for i in range(1, 12)]


def test_curves_of_a_run_that_is_being_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "train/loss": 3.0, "train/new": 1}\n{"step": 4, "train/loss": null}\n'
        '{"step": 4, "validation/loss_at_0.5": 2.5}\n{"step": 6, "tra'
    )
    found = curves.read_metrics(file)
    assert found["train/loss"][0] == [2.0, 4.0] and np.isnan(found["train/loss"][1][1])
    assert curves.last(found, "validation/loss_at_0.5") == 2.5
    assert curves.last(found, "train/none") is None
    drawn = {chart.title: chart for chart in curves.charts("prior", found, start=None)}
    # A metric that nobody knew is drawn too.
    assert set(drawn) == {"Loss", "Held-out loss, nats a token", "new"}
    assert "loss from 3 to 3" in drawn["Loss"].svg
    assert "0.5 masked from 2.5 to 2.5" in drawn["Held-out loss, nats a token"].svg


def test_charts_are_the_same_every_time_and_escape_their_texts():
    def draw():
        return charts.distance_by_count("x", "<FD> & co", [10, 20, 40], [3.0, 2.0, 1.5], None)

    first, second = draw(), draw()
    assert first == second
    Page(first.svg)
    assert "<FD>" not in first.svg and "too few" in first.caption
    assert all(i.startswith("x-") for i in Page(first.svg).ids)


def test_numbers_as_people_read_them():
    shown = {0.123456: "0.1235", 1234567.8: "1,234,568", 12: "12", 4000.0: "4,000", None: "–"}
    assert {value: tables.number(value) for value in shown} == shown
    assert tables.number(float("nan")) == "not finite"
    rows = tables.nested({"a": {"b": [1, 2], "c": None}, "d": [{"e": True}], "f": ""})
    assert [dataclasses.astuple(row) for row in rows] == [
        (0, "a", None),
        (1, "b", "1, 2"),
        (1, "c", "not set"),
        (0, "d", None),
        (1, "1", None),
        (2, "e", "yes"),
        (0, "f", "none"),
    ]
