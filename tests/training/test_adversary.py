"""The tokenizer's adversary: its part in a step of both networks, and what it costs."""

import collections
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.discriminators.augmentation import diff_augment
from vqjax.errors import InputError
from vqjax.losses.pixelwise import l2_loss
from vqjax.pixels import to_float
from vqjax.random_keys import random_key
from vqjax.training.tokenizer_stage import TokenizerStage

SGD = optax.sgd(1.0)


@pytest.fixture
def config():
    """A tokenizer with a plain codebook, and an adversary from the first step on."""
    config = tiny.get_config()
    quantizer = config.tokenizer.model.quantizer
    quantizer.learning, quantizer.restart_below = "gradient", 0.0
    config.tokenizer.ema_decay = 0.0
    config.tokenizer.loss.vq = 0.7
    discriminator = config.tokenizer.discriminator
    discriminator.start = discriminator.ramp = 0
    return config


def sgd_stage(config, tmp_path):
    """A stage in which the updates of both networks are the gradients themselves."""
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    stage.optimizer = SGD
    if stage.adversary:
        stage.adversary.optimizer = SGD
    return stage


def images(count=4):
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8))


def batch():
    return tiny.as_batch(images(), jnp.zeros(4, jnp.int32))


NOTHING = {"discriminator": {}, "reconstruction": {}}


def gradients(before, after):
    return [
        jax.tree.map(jnp.subtract, old.params, new.params)
        for old, new in (
            (before.model, after.model),
            (before.discriminator, after.discriminator),
        )
    ]


def keys(step):
    """The keys of the three looks that the discriminator takes in a step."""
    return jax.random.split(jax.random.fold_in(random_key(0, "tokenizer/train", step), 1), 3)


def judge(stage, params, model_state, x, key):
    variables = {"params": params, **model_state}
    x = diff_augment(key, x, stage.adversary.settings.augment)
    logits, state = stage.adversary.model.apply(variables, x, train=True, mutable=list(model_state))
    return logits, state


def plain_losses(stage, discriminator, x, key):
    """Of the tokenizer's parameters: (l2, VQ, hinge) losses, written down as they stand."""

    def losses(params):
        y, _, vq_loss, _ = stage.model.apply({"params": params}, x, train=True)
        logits, _ = judge(stage, discriminator.params, discriminator.model_state, y, key)
        return jnp.stack([l2_loss(y, x), vq_loss, -jnp.mean(logits)])

    return losses


def assert_close(a, b):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, 1e-3, 1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("adaptive", "max_weight"), [(False, 1.0), pytest.param(True, 1e6, marks=pytest.mark.slow)]
)
def test_both_networks_follow_their_losses(adaptive, max_weight, config, tmp_path):
    """Eq. 1 and VQGAN's Eq. 7; the adaptive weight is taken of l2 alone, and is a constant."""
    config.tokenizer.discriminator.update({"adaptive": adaptive, "max_weight": max_weight})
    stage = sgd_stage(config, tmp_path)
    before = jax.jit(stage.init)(jax.random.key(0))
    after, metrics = jax.jit(stage.train_step)(before, NOTHING, batch(), stage.training_key)
    generator_gradient, discriminator_gradient = gradients(before, after)

    x, (key_adversary, key_real, key_fake) = to_float(images()), keys(0)
    params, discriminator = before.model.params, before.discriminator
    losses = plain_losses(stage, discriminator, x, key_adversary)
    values, jacobian = jax.jit(lambda p: (losses(p), jax.jacrev(losses)(p)))(params)
    l2, vq, adversarial = (jax.tree.map(lambda j, i=i: j[i], jacobian) for i in range(3))
    weight = 0.8
    if adaptive:
        norms = [np.linalg.norm(g["last_convolution"]["kernel"]) for g in (l2, adversarial)]
        ratio = min(norms[0] / (norms[1] + 1e-4), max_weight)
        np.testing.assert_allclose(metrics["adaptive_weight"], ratio, rtol=1e-4)
        weight *= ratio
    np.testing.assert_allclose(metrics["adversarial_weight"], weight, rtol=1e-4)
    wanted = jax.tree.map(lambda a, b, c: a + 0.7 * b + weight * c, l2, vq, adversarial)
    assert_close(generator_gradient, wanted)
    np.testing.assert_allclose(metrics["loss"], values @ np.array([1, 0.7, weight]), rtol=1e-4)

    def discriminator_loss(own):
        y, *_ = stage.model.apply({"params": params}, x, train=True)
        real, state = judge(stage, own, discriminator.model_state, x, key_real)
        fake, state = judge(stage, own, state, y, key_fake)
        loss = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
        return loss, (state, jnp.mean(real > 0), jnp.mean(fake < 0))

    plain = jax.jit(jax.value_and_grad(discriminator_loss, has_aux=True))
    (loss, (state, real, fake)), wanted = plain(discriminator.params)
    assert_close(discriminator_gradient, wanted)
    assert_close(after.discriminator.model_state, state)
    measured = [metrics[k] for k in ("discriminator_loss", "accuracy_real", "accuracy_fake")]
    np.testing.assert_allclose(measured, [loss, real, fake], rtol=1e-4)


@pytest.mark.slow
def test_r1_joins_the_loss_of_the_discriminator_in_its_steps(config, tmp_path):
    """Half of gamma, for all steps until the next; at real images after their augmentation."""
    config.tokenizer.discriminator.update({"r1_gamma": 3.0, "r1_every": 4})
    stage = sgd_stage(config, tmp_path)
    before = jax.jit(stage.init)(jax.random.key(0))
    step = jax.jit(stage.train_step, static_argnames="phase")
    without, with_r1 = (
        step(before, NOTHING, batch(), stage.training_key, phase=phase) for phase in (1, 2)
    )
    discriminator = before.discriminator
    seen = diff_augment(keys(0)[1], to_float(images()), stage.adversary.settings.augment)

    def penalty(params):
        def total(seen):
            variables = {"params": params, **discriminator.model_state}
            apply = stage.adversary.model.apply
            return apply(variables, seen, train=True, mutable="batch_stats")[0].sum()

        return jnp.square(jax.grad(total)(seen)).sum() / 4

    value, gradient = jax.jit(jax.value_and_grad(penalty))(discriminator.params)
    added = jax.tree.map(
        jnp.subtract, without[0].discriminator.params, with_r1[0].discriminator.params
    )
    assert_close(added, jax.tree.map(lambda g: 3 / 2 * 4 * g, gradient))
    assert with_r1[1].keys() - without[1].keys() == {"r1"}
    np.testing.assert_allclose(with_r1[1]["r1"], value, rtol=1e-4)
    # Nothing else knows of it.
    for name, metric in without[1].items():
        if name != "discriminator_gradient_norm":
            np.testing.assert_allclose(with_r1[1][name], metric, rtol=1e-5, err_msg=name)
    assert_close(with_r1[0].model, without[0].model)
    assert_close(with_r1[0].discriminator.model_state, without[0].discriminator.model_state)


class Counts(TokenizerStage):
    """Counts how often each of its programs is traced."""

    traced: collections.Counter

    def train_step(self, state, frozen, batch, key, phase=None):
        self.traced[phase] += 1
        return super().train_step(state, frozen, batch, key, phase)


@pytest.mark.slow
def test_steps_with_and_without_r1_are_a_program_each_and_resume(tmp_path, caplog):
    workdir = tmp_path / "run"
    config = tiny.get_config(f"path={tiny.write_images(tmp_path / 'images')},steps=6")
    config.tokenizer.discriminator.update({"start": 0, "r1_gamma": 1.0, "r1_every": 2})
    config.tokenizer.log_every = 1
    stage = Counts("tokenizer", config, epath.Path(workdir))
    stage.traced = collections.Counter()
    with caplog.at_level(logging.INFO, logger="vqjax"):
        tiny.train(config, "tokenizer", workdir, stage)
    programs = [tiny.loop.jit_train_step(stage, tiny.one_device(), phase) for phase in (1, 2)]
    assert [program._cache_size() for program in programs] == [1, 1]
    assert caplog.text.count("begins with step") == 1
    lines = map(json.loads, (workdir / "tokenizer" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/r1" in line] == [1, 3, 5]

    # Between two of its steps.
    end = tiny.final_state(config, "tokenizer", workdir)
    checkpoints = workdir / "tokenizer" / "checkpoints"
    shutil.rmtree(checkpoints / "6")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["3"]
    tiny.train(config, "tokenizer", workdir, stage)
    assert stage.traced == {1: 1, 2: 1}
    again = tiny.final_state(config, "tokenizer", workdir)
    jax.tree.map(np.testing.assert_array_equal, again, end)


def test_r1_begins_with_the_adversary(config, tmp_path):
    config.tokenizer.discriminator.update({"start": 2, "r1_gamma": 1.0, "r1_every": 3})
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    assert [stage.phase(i) for i in range(9)] == [0, 0, 2, 1, 1, 2, 1, 1, 2]
    config.tokenizer.discriminator.r1_gamma = 0.0
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    assert [stage.phase(i) for i in range(6)] == [0, 0, 1, 1, 1, 1]


def test_before_its_start_there_is_no_adversary(config, tmp_path):
    """Both networks and all metrics are as without one, to the bit; then the weight ramps up."""
    discriminator = config.tokenizer.discriminator
    discriminator.start, discriminator.ramp, discriminator.adaptive = 2, 3, False
    stage = sgd_stage(config, tmp_path)
    without = config.copy_and_resolve_references()
    without.tokenizer.discriminator.model = ConfigDict({"name": "none"})
    alone = sgd_stage(without, tmp_path)
    first = state = jax.jit(stage.init)(jax.random.key(0))
    lonely = state.replace(discriminator=None)
    step = jax.jit(stage.train_step, static_argnames="phase")
    lonely_step = jax.jit(alone.train_step)

    weights = []
    for i in range(6):
        state, metrics = step(state, NOTHING, batch(), stage.training_key, phase=stage.phase(i))
        if i < 2:
            lonely, lonely_metrics = lonely_step(lonely, NOTHING, batch(), stage.training_key)
            for x, y in ((state.model, lonely.model), (metrics, lonely_metrics)):
                jax.tree.map(np.testing.assert_array_equal, x, y)
            jax.tree.map(np.testing.assert_array_equal, state.discriminator, first.discriminator)
        else:
            weights.append(float(metrics["adversarial_weight"]))
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    moved = jax.tree.map(jnp.array_equal, state.discriminator.params, first.discriminator.params)
    assert not any(jax.tree.leaves(moved))


def test_one_generator_forward_and_one_backward(config, tmp_path):
    """The step costs the sum of its parts, of which the generator's gradient is one."""
    config.tokenizer.model.widths = (64,)  # so that another pass would show
    stage = sgd_stage(config, tmp_path)
    state = jax.eval_shape(stage.init, jax.random.key(0))
    network, discriminator = state.model, state.discriminator
    x = to_float(images())

    def generator(params):
        def reconstruct(params):
            y, _, loss, metrics = stage.model.apply({"params": params}, x, train=True)
            return y, loss, metrics

        (_, loss, metrics), pull_back = jax.vjp(reconstruct, params)
        return pull_back((x, *jax.tree.map(jnp.zeros_like, (loss, metrics))))

    def judged(params, model_state, y):
        """The discriminator sees the fake twice, for either network, and the real once."""

        def fool(y):
            return jnp.mean(judge(stage, params, model_state, y, jax.random.key(0))[0])

        def tell_apart(params):
            real, _ = judge(stage, params, model_state, x, jax.random.key(0))
            fake, _ = judge(stage, params, model_state, y, jax.random.key(0))
            return jnp.mean(real) - jnp.mean(fake)

        return jax.grad(fool)(y), jax.grad(tell_apart)(params), jax.grad(l2_loss)(y, x)

    def last_layer(features, kernel, y):
        own = {"params": {"last_convolution": {"kernel": kernel, "bias": jnp.zeros(3)}}}
        return stage.model.apply(own, features, method="to_pixels") + y

    def flops(function, *args):
        return jax.jit(function).lower(*args).cost_analysis()["flops"]

    step = flops(stage.train_step, state, NOTHING, batch(), stage.training_key)
    parts = flops(generator, network.params)
    one_pass = parts / 3
    parts += flops(judged, discriminator.params, discriminator.model_state, x)
    kernel = network.params["last_convolution"]["kernel"]
    features = jax.ShapeDtypeStruct((4, 16, 16, kernel.shape[2]), jnp.float32)
    # The gradient of a convolution by its kernel costs what the convolution costs.
    parts += 2 * flops(last_layer, features, kernel, x)
    assert abs(step - parts) < 0.2 * one_pass


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("weight", -1.0, r"discriminator.weight=-1.0: 0 or more"),
        ("max_weight", 0.0, r"discriminator.max_weight=0.0: above 0"),
        ("start", 12, r"discriminator.start=12: a step before the last of 12"),
        ("ramp", -1, r"discriminator.ramp=-1: 0 or more"),
        ("r1_gamma", -1.0, r"discriminator.r1_gamma=-1.0: 0 or more"),
        ("r1_every", 0, r"discriminator.r1_every=0: at least 1"),
        ("loss", "hinges", r"r.loss='hinges': did you mean 'hinge'\?.*hinge, non_saturating"),
        ("augment", ("colour",), r"r.augment has 'colour': did .* 'color'\?.*cutout, translation"),
        ("model", ConfigDict({"name": "patch"}), r"discriminator.model.name='patch'.*patchgan"),
    ],
)
def test_bad_settings(setting, value, message, config, tmp_path):
    config.tokenizer.discriminator[setting] = value
    with pytest.raises(InputError, match=message):
        tiny.make_stage(config, "tokenizer", tmp_path)


def test_too_small_images_are_refused_before_training(config, tmp_path):
    config.tokenizer.discriminator.model.num_layers = 4
    config.decoder = common.decoder_stage(config.tokenizer)
    for name in ("tokenizer", "decoder"):
        message = f"config.{name}.discriminator.model.num_layers=4: .* 48x48 are needed, not 16x16"
        with pytest.raises(InputError, match=message):
            tiny.make_stage(config, name, tmp_path)
