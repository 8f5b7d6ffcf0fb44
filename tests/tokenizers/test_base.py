"""The contract of a tokenizer: the random numbers that it draws."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from vqjax.tokenizers.base import init_keys, step_keys, tokenizer_shapes
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN


class Noisy(EfficientVQGAN):
    """Draws from a stream of its own, too."""

    rngs = ("restart", "noise")

    def features(self, images, train=False):
        features, *rest = super().features(images, train)
        if train:
            features += jax.random.normal(self.make_rng("noise"), features.shape)
        return features, *rest


class Still(EfficientVQGAN):
    """Draws nothing."""

    rngs = ()


def of_kind(cls, model):
    names = (f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name"))
    return cls(**{name: getattr(model, name) for name in names})


@pytest.mark.parametrize("kind", ["noisy", "still"])
def test_a_tokenizer_draws_from_the_streams_that_it_declares(kind, tmp_path):
    """In training, and where its variables are made."""
    config = tiny.get_config()
    quantizer = config.tokenizer.model.quantizer
    if kind == "still":
        quantizer.learning, quantizer.restart_below = "gradient", 0.0
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    stage.model = of_kind({"noisy": Noisy, "still": Still}[kind], stage.model)
    batch = tiny.as_batch(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, np.int32))
    state = jax.eval_shape(stage.init, jax.random.key(0))
    jax.eval_shape(stage.train_step, state, stage.frozen_shapes(), batch, stage.training_key)
    shapes = tokenizer_shapes(stage.model, 16)
    assert jax.tree.map(np.shape, shapes["params"]) == jax.tree.map(np.shape, state.model.params)


def test_streams_have_keys_of_their_own():
    config, key = tiny.get_config(), jax.random.key(3)
    model = tiny.make_stage(config, "tokenizer", "").model
    noisy = of_kind(Noisy, model)
    # The step's own key for the only stream, so that a run's digits do not depend on the list.
    assert step_keys(model, key) == {"restart": key}
    params, restart = jax.random.split(key)
    assert init_keys(model, key) == {"params": params, "restart": restart}
    for keys, names in (
        (step_keys(noisy, key), ["restart", "noise"]),
        (init_keys(noisy, key), ["params", "restart", "noise"]),
    ):
        assert list(keys) == names
        assert len({jax.random.key_data(k).tobytes() for k in keys.values()}) == len(names)
    assert step_keys(of_kind(Still, model), key) == {}
