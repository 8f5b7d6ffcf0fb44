"""A decoder trained on the codes of a tokenizer that does not move; starting from weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.errors import InputError
from vqjax.generation.run import Run
from vqjax.parallel import placed
from vqjax.pixels import to_float
from vqjax.random_keys import random_key
from vqjax.tokenizers import TOKENIZERS
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.training import loop


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The finished run with a decoder stage, trained on it."""
    finished = tiny.finished_run()
    config = finished.config.copy_and_resolve_references()
    config.decoder = common.decoder_stage(config.tokenizer)
    config.decoder.discriminator.model = ConfigDict({"name": "none"})
    config.decoder.ema_decay = 0.0
    # Taken from there, so that this run holds its decoder alone.
    config.tokenizer.use_from = config.prior.use_from = str(finished.workdir)
    config.stages = ("tokenizer", "decoder", "prior")
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    tiny.train(config, "decoder", workdir)
    return config, epath.Path(workdir)


def frozen_of(stage):
    return stage.load_frozen(placed(stage.frozen_shapes(), tiny.one_device()))


def images(count=8):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def start_of(stage):
    """The state before the first step."""
    return loop.first_state(stage, tiny.one_device())


def test_its_state_holds_the_decoder_alone(run):
    config, workdir = run
    stage = tiny.make_stage(config, "decoder", workdir)
    state = loop.abstract_state(stage, tiny.one_device())
    assert set(state.model.params) == {"decoder", "last_convolution"}
    assert not state.model.model_state
    codes = stage.frozen_shapes()["codes"]
    assert set(codes["params"]) == {"encoder"} and "quantizer" in codes


def test_its_first_output_is_the_tokenizer_s_and_then_it_learns(run):
    config, workdir = run
    stage = tiny.make_stage(config, "decoder", workdir)
    frozen = frozen_of(stage)
    x = to_float(images())

    def reconstruct(state):
        variables = stage.variables(state.model.weights, state.model.model_state, frozen)
        return jax.jit(stage.model.apply)(variables, x)[0]

    tokenizer = Run(tiny.finished_run().workdir, tiny.one_device())
    before = jax.jit(tokenizer.tokenizer.apply)(tokenizer.tokenizer_variables, x)[0]
    np.testing.assert_array_equal(reconstruct(start_of(stage)), before)
    after = tiny.final_state(config, "decoder", workdir)
    assert not np.array_equal(reconstruct(after), before)


def test_codes_are_bit_identical_and_images_are_of_the_new_decoder(run):
    _, workdir = run
    mesh = tiny.one_device()
    ours, theirs = Run(workdir, mesh), Run(tiny.finished_run().workdir, mesh)
    tokens = ours.encode(images())
    np.testing.assert_array_equal(tokens.codes, theirs.encode(images()).codes)
    assert (ours.decode(tokens) != theirs.decode(tokens)).any()
    assert ours.tokenizer_stage == "decoder" and ours.steps == {"tokenizer": 12, "decoder": 12}
    for name, value in theirs.tokenizer_variables["params"]["encoder"].items():
        mine = ours.tokenizer_variables["params"]["encoder"][name]
        jax.tree.map(np.testing.assert_array_equal, mine, value)
    quantizers = (r.tokenizer_variables["quantizer"] for r in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, *quantizers)
    # What the tokenizer's stage has trained is its own decoder still.
    whole = ours.stage_variables("tokenizer"), theirs.tokenizer_variables
    jax.tree.map(np.testing.assert_array_equal, *whole)
    assert set(ours.stage_variables("decoder")["params"]) == {"decoder", "last_convolution"}


def test_its_gradient_is_that_of_the_reconstruction_by_the_decoder(run):
    config, workdir = run
    stage = tiny.make_stage(config, "decoder", workdir)
    frozen, state = frozen_of(stage), start_of(stage)
    batch = tiny.as_batch(jnp.asarray(images()), jnp.zeros(8, jnp.int32))
    _, metrics = jax.jit(stage.train_step)(state, frozen, batch, stage.training_key)
    assert "vq_loss" not in metrics

    def loss(params):
        y = stage.model.apply(stage.variables(params, {}, frozen), to_float(images()))[0]
        return stage.reconstruction_loss(frozen["reconstruction"], y, to_float(images()))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(state.model.params)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


class LongerTail(EfficientVQGAN):
    """A tokenizer with one more layer that the decoder alone has."""

    def setup(self):
        super().setup()
        self.enhancement = nn.Conv(self.widths[0], (3, 3))

    decoder_parts = ("decoder", "enhancement", "last_convolution")

    def to_pixels(self, features):
        return super().to_pixels(self.enhancement(features))


def test_a_larger_decoder_starts_from_the_layers_that_both_have(run, monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "longer_tail", LongerTail)
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.decoder.model.name = "longer_tail"
    stage = tiny.make_stage(config, "decoder", workdir)
    frozen_of(stage)
    key = random_key(config.seed, "decoder/init", 0)
    fresh = jax.jit(stage.init)(key).model.params
    params = start_of(stage).model.params
    finished = tiny.finished_run()
    theirs = tiny.final_state(finished.config, "tokenizer", finished.workdir).model.ema
    assert set(params) - set(theirs) == {"enhancement"}
    for name, value in params.items():
        source = fresh if name == "enhancement" else theirs
        jax.tree.map(np.testing.assert_array_equal, value, source[name])


def test_a_codebook_loss_has_nothing_to_train(run):
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.decoder.loss.vq = 1.0
    with pytest.raises(InputError, match=r"config.decoder.loss.vq=1.0: .* set 0"):
        tiny.make_stage(config, "decoder", workdir)
