"""Trained weights for those who only use them: of the step and the average that are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath

from vqjax.errors import InputError
from vqjax.runs.checkpoints import Checkpointer
from vqjax.runs.stages import TrainedStage
from vqjax.runs.weights import load_weights, saved_variables
from vqjax.training.state import Network, State


@pytest.fixture
def stage(tmp_path):
    """Three checkpoints, the second of which is the best; weights tell the step."""
    config = tiny.get_config("path=x").tokenizer
    config.best_metric, config.keep_checkpoints, config.steps = "psnr", 3, 3
    folder = epath.Path(tmp_path)
    checkpointer = Checkpointer(folder / "checkpoints", keep=3, best_metric="psnr")
    for step, psnr in ((1, 10.0), (2, 30.0), (3, 20.0)):
        weights = {"kernel": jnp.full(2, float(step))}
        average = {"kernel": -weights["kernel"]}
        network = Network(weights, {}, average, {"codes": {"count": weights["kernel"]}})
        checkpointer.save(step, State(jnp.int32(step), network), {"psnr": psnr})
    checkpointer.close()
    return TrainedStage("tokenizer", folder, config)


@pytest.mark.parametrize(("use", "step"), [("last", 3), ("best", 2)])
@pytest.mark.parametrize(("ema_decay", "sign"), [(0.0, 1), (0.9, -1)])
def test_weights_are_of_the_step_and_the_average_that_are_asked_for(
    stage, use, step, ema_decay, sign
):
    stage.config.update({"use": use, "ema_decay": ema_decay})
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    shapes = {"params": {"kernel": shape}, "codes": {"count": shape}}
    variables, found = load_weights(stage, shapes)
    assert found == step
    np.testing.assert_array_equal(variables["params"]["kernel"], [sign * step] * 2)
    np.testing.assert_array_equal(variables["codes"]["count"], [step] * 2)


def test_no_checkpoint_is_told_with_what_to_do(tmp_path):
    stage = TrainedStage("tokenizer", epath.Path(tmp_path), tiny.get_config("path=x").tokenizer)
    with pytest.raises(InputError, match=r"there is no trained tokenizer in .*use_from"):
        load_weights(stage, {"params": {}})


def test_what_is_saved_is_told_by_path_of_the_newest_checkpoint_that_says_so(stage):
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert saved_variables(stage) == {"params/kernel": shape, "codes/count": shape}
    checkpoints = stage.folder / "checkpoints"
    (checkpoints / "3" / "state" / "_METADATA").unlink()
    assert set(saved_variables(stage)) == {"params/kernel", "codes/count"}
    for step in ("1", "2"):
        (checkpoints / step / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match="there is no trained tokenizer"):
        saved_variables(stage)
