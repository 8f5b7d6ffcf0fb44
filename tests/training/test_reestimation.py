"""Re-estimation of the codebook between steps: what it sets, and that a run goes on alike."""

import atexit
import functools
import logging
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.data import Share
from vqjax.errors import InputError, TrainingError
from vqjax.parallel import global_batch
from vqjax.tokenizers.base import Tokenizer
from vqjax.training import loop
from vqjax.training.stage import TrainingData
from vqjax.training.start import leaves_by_path

EVERY, STEPS = 3, 8


def get_config(path, **quantizer):
    config = tiny.get_config(f"path={path},steps={STEPS}")
    config.tokenizer.discriminator.model = ConfigDict({"name": "none"})
    config.tokenizer.model.quantizer.update(
        {"learning": "gradient", "latent_norm": "none", "restart_below": 0.0} | quantizer
    )
    config.tokenizer.kmeans.update({"every": EVERY, "images": 20, "iterations": 4})
    config.tokenizer.update({"checkpoint_every": 1, "keep_checkpoints": STEPS, "best_metric": ""})
    # A mean of several steps would be of those since the start alone.
    config.tokenizer.eval_every, config.tokenizer.log_every = STEPS, 1
    return config


@functools.cache
def images():
    folder = Path(tempfile.mkdtemp(prefix="vqjax-test-images-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tiny.write_images(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that nothing stopped, and what was told of it."""
    config = get_config(images())
    workdir = epath.Path(tmp_path_factory.mktemp("kmeans") / "run")
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("vqjax")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    tiny.train(config, "tokenizer", workdir)
    log.setLevel(level)
    log.removeHandler(handler)
    return config, workdir, said


def metrics_of(workdir):
    return (workdir / "tokenizer" / "metrics.jsonl").read_text()


# Before, at and after the steps after which the codebook is re-estimated.
@pytest.mark.parametrize("step", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 6))])
def test_a_run_that_goes_on_ends_as_one_that_nothing_stopped(run, step, tmp_path):
    config, unbroken, _ = run
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(workdir / "tokenizer" / "checkpoints" / str(later))
    tiny.train(config, "tokenizer", workdir)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(tiny.final_state(config, "tokenizer", unbroken)),
        jax.tree.leaves(tiny.final_state(config, "tokenizer", workdir)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert metrics_of(workdir) == metrics_of(unbroken)


def test_it_is_told(run):
    _, workdir, said = run
    lines = [line for line in said if "re-estimated" in line]
    # 3 batches of 8 images with 16 vectors.
    assert len(lines) == 2 and all("k-means of 384 vectors" in line for line in lines)
    assert metrics_of(workdir).count('"train/kmeans_usage": ') == 2


@functools.cache
def stage_and_state(**quantizer):
    stage = tiny.make_stage(get_config(images(), **quantizer), "tokenizer", "")
    state = loop.first_state(stage, tiny.one_device())
    # A past that is to be forgotten.
    past = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, state)
    return stage, past


def reestimated(stage, state, step=EVERY):
    config = stage.run_config
    sources = (tiny.build_source(config.data.source, name, 16) for name in ("train", "validation"))
    data = TrainingData(tiny.data_settings(config), *sources, tiny.CONDITION)
    frozen = {}
    to_devices = functools.partial(global_batch, mesh=tiny.one_device())
    return stage.between_steps(state, step, data, frozen, to_devices, Share(0, 8))


KINDS = [
    {"latent_norm": "l2"},
    {"latent_norm": "layer", "restart_below": 0.1},
    {"learning": "ema", "restart_below": 0.1},
    {"learning": "ema", "latent_norm": "l2"},
]


@pytest.mark.parametrize(
    "quantizer", [{}, *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)], ids=str
)
def test_only_the_codebook_and_its_past_change(quantizer):
    stage, state = stage_and_state(**quantizer)
    after, metrics = reestimated(stage, state)
    model: Tokenizer = stage.model
    codes = model.apply(after.model.variables, method="codebook")
    assert metrics["kmeans_usage"] == 1 > metrics["kmeans_usage_before"]
    assert metrics["kmeans_distortion"] < 0.5 * metrics["kmeans_distortion_before"]
    if model.quantizer.latent_norm == "l2":
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)

    before, now = map(leaves_by_path, (state, after))
    changed = {path for path in now if not np.array_equal(before[path], now[path])}
    if model.quantizer.learning == "ema":
        state_of = after.model.model_state["quantizer"]["quantizer"]
        assert changed <= {
            f"model/model_state/quantizer/quantizer/{name}"
            for name in ("code_sum", "code_count", "started")
        }
        assert np.min(state_of["code_count"]) >= 1 and state_of["started"]
    else:
        of_codebook = {path for path in now if path.endswith("quantizer/codebook")}
        statistics = {path for path in now if "/model_state/" in path}
        assert of_codebook <= changed <= of_codebook | statistics and len(of_codebook) == 4
        for path in of_codebook:
            expected = 0 if "opt_state" in path else codes
            np.testing.assert_allclose(now[path], np.broadcast_to(expected, codes.shape), 1e-5)
        # A code that was to restart would leave its new place at once.
        replaced = model.replaced_codes(after.model.model_state)
        assert replaced is None or not np.any(replaced[0].rows)
    for path, x in now.items():
        assert x.sharding == before[path].sharding and x.dtype == before[path].dtype, path


def test_it_is_of_the_step_alone():
    stage, state = stage_and_state()
    first, again, later = (reestimated(stage, state, step)[1] for step in (3, 3, 6))
    assert first == again != later
    for step in (0, 1, 4):
        same, metrics = reestimated(stage, state, step)
        assert same is state and not metrics


def test_after_its_end_the_codebook_stays():
    config = get_config(images())
    config.tokenizer.kmeans.until = 7
    stage = tiny.make_stage(config, "tokenizer", "")
    assert [step for step in range(20) if stage.reestimation.is_due(step)] == [3, 6]


def test_what_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    config = get_config(images())
    encode = Tokenizer.latents

    def broken(self, images):
        return encode(self, images).at[0, 0, 0].set(np.inf)

    monkeypatch.setattr(Tokenizer, "latents", broken)
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    with pytest.raises(TrainingError, match=r"step 4: kmeans_distortion is nan, .*is step 3 in"):
        tiny.train(config, "tokenizer", tmp_path, stage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1}, r"config.tokenizer.kmeans.every=-1: 0 or more is needed"),
        ({"images": 1}, None),
        ({"imags": 1}, r"config.tokenizer.kmeans.imags: .* did you mean 'images'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    config = get_config(images())
    config.tokenizer.kmeans = ConfigDict({"every": 3} | settings)
    if message is None:
        tiny.make_stage(config, "tokenizer", "")
    else:
        with pytest.raises(InputError, match=message):
            tiny.make_stage(config, "tokenizer", "")


def test_fewer_vectors_than_codes_are_refused():
    config = get_config(images(), num_codes=200)
    config.tokenizer.kmeans.images = 8
    with pytest.raises(InputError, match=r"tokenizer.kmeans.images=8: their 128 .* 200 codes; 13 "):
        tiny.make_stage(config, "tokenizer", "")


def test_a_decoder_stage_has_none():
    config = get_config(images())
    config.decoder = common.decoder_stage(config.tokenizer)
    tiny.make_stage(config, "decoder", "")
    config.decoder.kmeans = config.tokenizer.kmeans
    with pytest.raises(InputError, match=r"config.decoder.kmeans: StageSettings has no such field"):
        tiny.make_stage(config, "decoder", "")


def test_a_config_from_before_there_was_one_has_none():
    config = get_config(images())
    del config.tokenizer.kmeans
    stage = tiny.make_stage(config, "tokenizer", "")
    assert not any(map(stage.reestimation.is_due, range(10)))
