"""All discriminators: frozen parameters, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from discriminator_oracles import build
from ml_collections import ConfigDict

from vqjax.discriminators import DISCRIMINATORS, Discriminator, build_discriminator
from vqjax.errors import InputError
from vqjax.settings import Range, setting


def test_shapes_of_frozen_parameters_are_those_of_init():
    for name in DISCRIMINATORS:
        model = build({"name": name})
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(
            lambda key, x, model=model: model.init(key, x, train=False), jax.random.key(0), images
        )
        expected = {part: variables["params"][part] for part in model.frozen}
        values = model.frozen_params(jax.random.key(0))
        assert jax.tree.map(jnp.shape, values) == jax.tree.map(jnp.shape, expected)
        assert len(variables["params"]) > len(values)


class Linear(Discriminator):
    """One logit, a weighted mean of the colours."""

    gain: float = setting(1.0, "of the logit", Range(0, above=True))

    @nn.compact
    def __call__(self, images, train):
        return self.gain * nn.Dense(1)(jnp.mean(images, axis=(1, 2)))


def test_a_new_one_is_a_class_and_a_line(monkeypatch, tmp_path):
    """It trains a tokenizer; what it does not need of the contract it leaves out."""
    monkeypatch.setitem(DISCRIMINATORS, "linear", Linear)
    config = tiny.get_config()
    config.tokenizer.discriminator.model = ConfigDict({"name": "linear", "gain": 2.0})
    config.tokenizer.discriminator.start = 0
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    state = jax.eval_shape(stage.init, jax.random.key(0))
    batch = tiny.as_batch(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, np.int32))
    after, metrics = jax.eval_shape(
        stage.train_step, state, stage.frozen_shapes(), batch, stage.training_key
    )
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    assert {"discriminator_loss", "generator_loss"} < set(metrics)
    config.tokenizer.discriminator.model.gain = 0.0
    with pytest.raises(InputError, match=r"tokenizer.discriminator.model.gain=0.0: above 0"):
        tiny.make_stage(config, "tokenizer", tmp_path)


def test_unknown_names_and_fields_are_refused():
    with pytest.raises(
        InputError, match=r"discriminator\.model\.name='patch'.*patchgan, projected"
    ):
        build({"name": "patch"})
    with pytest.raises(InputError, match=r"^config\.fine\.model\.width=0: at least 1 is needed"):
        build_discriminator("fine.model", {"name": "patchgan", "width": 0})
    with pytest.raises(InputError, match=r"model\.widht.*did you mean 'width'"):
        build({"name": "patchgan", "widht": 3})
