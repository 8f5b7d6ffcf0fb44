"""Fine-tuning: what a stage takes of another run's weights, what it does not, and what is told."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath

from vqjax.conditions import ClassCondition
from vqjax.errors import InputError
from vqjax.pixels import to_float
from vqjax.quantizers import STATE
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.workdir import write_condition, write_config
from vqjax.training.loop import abstract_state, first_state
from vqjax.training.stage_kinds import build_stage
from vqjax.training.start import leaves_by_path, position_rule


def shapes_of(stage):
    return abstract_state(stage, tiny.one_device()).model.variables


def filled(shapes, seed, flags=False):
    """Arrays of a normal distribution, as no initializer gives."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        flag = leaf.dtype == bool
        values = np.full(leaf.shape, flags) if flag else rng.normal(1.0, 0.1, leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, shapes)


def trained_run(config, name, folder, condition=tiny.CONDITION):
    """A run of one finished stage with arrays of its own; the variables that it is used with."""
    write_config(config, folder)
    write_condition(folder, condition)
    stage = build_stage(config, name, epath.Path(folder), condition)
    state = filled(abstract_state(stage, tiny.one_device()), seed=1, flags=True)
    checkpointer = Checkpointer(epath.Path(folder) / name / "checkpoints")
    checkpointer.save(config[name].steps, state)
    checkpointer.close()
    return {"params": state.model.weights, **state.model.model_state}


def tuned(config, name, source, condition=tiny.CONDITION, workdir="anywhere", **model):
    """A stage that starts from a run, its model's settings changed."""
    config = config.copy_and_resolve_references()
    config[name].init_from = str(source)
    config[name].model.update_from_flattened_dict(model)
    return build_stage(config, name, epath.Path(workdir), condition)


def start_of(stage, caplog):
    """Fresh variables, those that the stage starts with, and what it says."""
    fresh = filled(shapes_of(stage), seed=2)
    with caplog.at_level("INFO", logger="vqjax"):
        started = stage.load_start(fresh)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    return fresh, started, caplog.text


def assert_all_is_told(fresh, started, theirs, text):
    """Every array is the other run's, or it is named, or a part of what is named."""
    fresh, started, theirs = (leaves_by_path(tree) for tree in (fresh, started, theirs))
    for path, leaf in started.items():
        assert leaf.shape == fresh[path].shape and leaf.sharding == fresh[path].sharding
        taken = path in theirs and np.array_equal(leaf, theirs[path])
        parents = [path[: match.start()] for match in re.finditer("/|$", path)]
        named = any(re.search(rf"{parent}([ ;]|$)", text, re.MULTILINE) for parent in parents)
        assert taken != named, path


@pytest.fixture
def config():
    return tiny.get_config("path=x")


@pytest.mark.parametrize("name", ["tokenizer", pytest.param("prior", marks=pytest.mark.slow)])
def test_the_same_model_starts_from_all_weights(name, caplog):
    finished = tiny.finished_run()
    stage = tuned(finished.config, name, finished.workdir)
    with caplog.at_level("INFO", logger="vqjax"):
        start = first_state(stage, tiny.one_device())
    assert int(start.step) == 0
    trained = tiny.final_state(finished.config, name, finished.workdir).model
    jax.tree.map(np.testing.assert_array_equal, start.model.params, trained.ema)
    jax.tree.map(np.testing.assert_array_equal, start.model.ema, trained.ema)
    jax.tree.map(np.testing.assert_array_equal, start.model.model_state, trained.model_state)
    # The optimizer begins anew.
    assert not any(np.any(x) for x in jax.tree.leaves(start.model.opt_state))
    leaves = leaves_by_path(start.model.variables)
    assert f"starts from {finished.workdir}/{name}: {len(leaves)} of {len(leaves)} " in caplog.text
    assert "fresh here" not in caplog.text and "not taken" not in caplog.text


@pytest.mark.parametrize(
    "classes", [("waves", "stripes", "checks"), ("discs", "waves", "rings", "x")]
)
def test_a_prior_takes_the_classes_that_it_shares_and_all_else_that_fits(
    classes, config, tmp_path, caplog
):
    """At twice the resolution, where the positions of the grid are others."""
    theirs = trained_run(config, "prior", tmp_path)
    config.data.resolution = 32
    stage = tuned(config, "prior", tmp_path, ClassCondition(classes))
    fresh, started, text = start_of(stage, caplog)

    table = "params/condition_embedding/ids/embedding"
    rows, new, old = (leaves_by_path(tree)[table] for tree in (started, fresh, theirs))
    assert len(rows) == len(classes) + 2
    for i, name in enumerate(classes):
        wanted = old[tiny.CLASSES.index(name)] if name in tiny.CLASSES else new[i]
        np.testing.assert_array_equal(rows[i], wanted)
    np.testing.assert_array_equal(rows[-2:], old[-2:])
    shared = len(set(classes) & set(tiny.CLASSES))
    assert f"{table} has {shared} of its {len(classes)} rows of the classes" in text

    for path in ("local_position/row", "global_position/column"):
        rows, old = (leaves_by_path(tree)[f"params/{path}"] for tree in (started, theirs))
        assert len(rows) > len(old)
        # Its ends are those of the table there.
        np.testing.assert_array_equal(np.asarray(rows)[[0, -1]], np.asarray(old)[[0, -1]])
        assert f"params/{path} is stretched from {len(old)} to {len(rows)} cells" in text
    assert_all_is_told(fresh, started, theirs, text)


def test_positions_of_cells_are_stretched_along_both_sides():
    rows, columns = np.mgrid[:2, :3].astype(np.float32)
    old = np.stack([rows, columns], -1)
    path, new = "params/position/cell", jax.ShapeDtypeStruct((4, 6, 2), np.float32)
    taken = position_rule({path: new}, {path: jnp.asarray(old)})[path]
    assert taken.note == f"{path} is stretched from 2x3 to 4x6 cells"
    made = np.asarray(taken.make(new, jnp.asarray(old)))
    np.testing.assert_allclose(made[:, 2, 0], [0, 0.25, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(made[1, :, 1], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
    wider = jax.ShapeDtypeStruct((4, 6, 3), np.float32)
    assert not position_rule({path: wider}, {path: jnp.asarray(old)})


def test_a_tokenizer_fits_every_resolution(config, tmp_path, caplog):
    theirs = trained_run(config, "tokenizer", tmp_path)
    config.data.resolution = 32
    _, started, _ = start_of(tuned(config, "tokenizer", tmp_path), caplog)
    jax.tree.map(np.testing.assert_array_equal, started, theirs)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_codes_stay_what_they_are_where_they_are_learned_otherwise(
    learning, config, tmp_path, caplog
):
    other = {"gradient": "ema", "ema": "gradient"}[learning]
    change = {"quantizer.restart_below": 0.0, "quantizer.latent_norm": "layer"}
    config.tokenizer.model.update_from_flattened_dict({**change, "quantizer.learning": other})
    theirs = trained_run(config, "tokenizer", tmp_path)
    there = build_stage(config, "tokenizer", epath.Path(tmp_path)).model
    here = tuned(config, "tokenizer", tmp_path, **{"quantizer.learning": learning})
    _, started, text = start_of(here, caplog)
    codes = (m.apply(v, method="codebook") for m, v in ((here.model, started), (there, theirs)))
    np.testing.assert_array_equal(*codes)
    if learning == "ema":
        # Not to be put on the vectors of the first batch.
        assert started[STATE]["quantizer"]["started"]
    assert f"quantizer.learning was {other}, is now {learning}" in text

    # So the reconstruction begins as the source's ended.
    images = to_float(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    ours, wanted = (
        jax.jit(m.apply)(v, images) for m, v in ((here.model, started), (there, theirs))
    )
    np.testing.assert_array_equal(ours[1].codes, wanted[1].codes)
    np.testing.assert_allclose(ours[0], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"quantizer.num_codes": 16}, {"quantizer.code_dim": 4}])
def test_a_codebook_of_another_size_starts_anew_with_all_that_is_known_of_it(
    change, config, tmp_path, caplog
):
    theirs = trained_run(config, "tokenizer", tmp_path)
    stage = tuned(config, "tokenizer", tmp_path, **change)
    fresh, started, text = start_of(stage, caplog)
    for name, leaf in started[STATE]["quantizer"].items():
        np.testing.assert_array_equal(leaf, fresh[STATE]["quantizer"][name])
    assert "32x8 there" in text
    assert_all_is_told(fresh, started, theirs, text)


def test_another_depth_takes_the_layers_that_both_have(config, tmp_path, caplog):
    theirs = trained_run(config, "tokenizer", tmp_path)
    fresh, started, text = start_of(tuned(config, "tokenizer", tmp_path, depths=(3,)), caplog)
    assert "fresh here, not there: params/decoder/" in text
    assert_all_is_told(fresh, started, theirs, text)


def test_nothing_in_common_is_an_error_before_any_training(config, tmp_path):
    trained_run(config, "tokenizer", tmp_path)
    other = {"widths": (80,), "head_dim": 8, "quantizer.num_codes": 16, "quantizer.code_dim": 4}
    stage = tuned(config, "tokenizer", tmp_path, **other)
    message = rf"tokenizer cannot start from {tmp_path}/tokenizer: no matrix there fits this model"
    for begin in (stage.check_start, stage.load_start):
        with pytest.raises(InputError, match=message) as error:
            begin(shapes_of(stage))
        assert "\n" not in str(error.value)


def test_a_stage_that_goes_on_needs_its_source_no_more(config, tmp_path):
    stage = tuned(config, "tokenizer", tmp_path / "nowhere", workdir=tmp_path / "run")
    with pytest.raises(InputError, match="nowhere is not the folder of a run"):
        stage.check_start(shapes_of(stage))
    trained_run(config, "tokenizer", tmp_path / "run")
    stage.check_start(shapes_of(stage))
