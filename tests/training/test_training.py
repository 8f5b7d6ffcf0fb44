"""The training steps: what they differentiate, what they update, what they measure."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from vqjax.data import build_source, evaluation_batches
from vqjax.errors import InputError, TrainingError
from vqjax.losses.perceptual import LPIPS
from vqjax.losses.pixelwise import l1_loss, l2_loss
from vqjax.parallel import global_batch, placed
from vqjax.pixels import to_float
from vqjax.random_keys import random_key
from vqjax.training.tokenizer_stage import TokenizerStage

STAGES = ("tokenizer", "prior")


@pytest.fixture
def config():
    """Of the finished run, to be changed, without its adversary."""
    config = tiny.finished_run().config.copy_and_resolve_references()
    config.tokenizer.discriminator.model = ConfigDict({"name": "none"})
    return config


def gradient_codebook(config):
    quantizer = config.tokenizer.model.quantizer
    quantizer.learning, quantizer.restart_below = "gradient", 0.0
    return config


def sgd_stage(config, name):
    """A stage whose update is the gradient itself."""
    stage = tiny.make_stage(config, name, tiny.finished_run().workdir)
    stage.optimizer = optax.sgd(1.0)
    return stage


def step_gradient(before, after):
    return jax.tree.map(jnp.subtract, before.model.params, after.model.params)


def batch(count=8, side=16):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return jnp.asarray(images), jnp.arange(count, dtype=jnp.int32) % len(tiny.CLASSES)


def frozen_of(stage):
    return stage.load_frozen(placed(stage.frozen_shapes(), tiny.one_device()))


def trained(name):
    """The finished run's stage, state and frozen weights."""
    run = tiny.finished_run()
    stage = tiny.make_stage(run.config, name, run.workdir)
    return stage, tiny.final_state(run.config, name, run.workdir), frozen_of(stage)


def validation(stage, state, frozen):
    """The metrics of a validation pass, whose last batch has a row of padding."""
    config = tiny.finished_run().config
    source = build_source(config.data.source, "validation", 16)
    mesh = tiny.one_device()
    batches = evaluation_batches(source, tiny.CONDITION, tiny.DATA, batch_size=8)
    return stage.evaluate(state, frozen, batches, lambda x: global_batch(x, mesh))[0]


def assert_close(a, b, rtol=1e-4, atol=1e-6):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol, atol, err_msg=jax.tree_util.keystr(path))


def plain_tokenizer_loss(stage, frozen, images):
    """Eq. 1 without the adversary, written down as it stands."""
    weights = stage.weights

    def loss(params, model_state, rng):
        (y, _, vq_loss, _), model_state = stage.model.apply(
            {"params": params, **model_state},
            to_float(images),
            train=True,
            rngs={"restart": rng},
            mutable=list(model_state),
        )
        x = to_float(images)
        total = weights.vq * vq_loss
        total += weights.l1 * l1_loss(x, y) + weights.l2 * l2_loss(x, y)
        if weights.perceptual:
            distances = LPIPS(weights.perceptual_net).apply(frozen["reconstruction"]["lpips"], x, y)
            total += weights.perceptual * jnp.mean(distances)
        return total, model_state

    return jax.value_and_grad(loss, has_aux=True)


def plain_prior_loss(stage, frozen, images, labels):
    """Eq. 2, of the tokens of the images."""

    def loss(params, model_state, rng):
        tokens = stage.tokenizer.apply(frozen, to_float(images), method="encode")
        mask, dropout = jax.random.split(rng)
        nats, _, metrics = stage.model.apply(
            {"params": params, **model_state},
            tokens,
            labels[:, None],
            train=True,
            method="loss",
            rngs={"mask": mask, "dropout": dropout},
        )
        return nats, metrics

    return jax.value_and_grad(loss, has_aux=True)


def test_tokenizer_gradient_is_that_of_the_whole_loss(config):
    """All terms, pixels, perceptual and quantizer, with weights that are not 1."""
    config.data.resolution = 32
    config.tokenizer.loss.update({"l1": 0.5, "l2": 2.0, "perceptual": 0.3, "vq": 0.7})
    config.tokenizer.loss.perceptual_net = "alexnet"
    stage = sgd_stage(gradient_codebook(config), "tokenizer")
    shapes = stage.frozen_shapes()
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), shapes)
    images, labels = batch(2, side=32)
    state = jax.jit(stage.init)(jax.random.key(0))

    after, metrics = jax.jit(stage.train_step)(
        state, frozen, tiny.as_batch(images, labels), stage.training_key
    )
    plain = jax.jit(plain_tokenizer_loss(stage, frozen, images))
    (loss, _), grads = plain(state.model.params, {}, random_key(0, "tokenizer/train", 0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert_close(step_gradient(state, after), grads)
    # No adversary, and nothing adaptive.
    assert set(metrics) == {
        *("loss", "l1", "l2", "perceptual", "vq_loss", "commitment_loss", "batch_perplexity"),
        *("gradient_norm", "learning_rate"),
    }
    assert after.discriminator is None


def test_prior_gradient_is_that_of_its_loss(config):
    _, state, frozen = trained("prior")
    stage = sgd_stage(config, "prior")
    state = state.replace(model=state.model.replace(opt_state=stage.optimizer.init(0.0)))
    images, labels = batch()
    after, metrics = jax.jit(stage.train_step)(
        state, frozen, tiny.as_batch(images, labels), stage.training_key
    )
    plain = jax.jit(plain_prior_loss(stage, frozen, images, labels))
    key = random_key(config.seed, "prior/train", state.step)
    (loss, _), grads = plain(state.model.params, {}, key)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(step_gradient(state, after), grads)
    assert set(metrics) == {"loss", "accuracy", "gradient_norm", "learning_rate"}


@pytest.mark.parametrize("name", STAGES)
def test_one_forward_and_one_backward(name, config):
    """The step costs what the plain gradient of its loss costs, in floating-point operations."""
    stage = sgd_stage(config, name)
    state = jax.eval_shape(stage.init, jax.random.key(0))
    frozen = stage.frozen_shapes()
    images, labels = batch()

    def plain(params, model_state, frozen, rng):
        if name == "tokenizer":
            return plain_tokenizer_loss(stage, frozen, images)(params, model_state, rng)
        return plain_prior_loss(stage, frozen, images, labels)(params, model_state, rng)

    def flops(function, *args):
        return jax.jit(function).lower(*args).cost_analysis()["flops"]

    network = state.model
    step = flops(stage.train_step, state, frozen, tiny.as_batch(images, labels), stage.training_key)
    wanted = flops(plain, network.params, network.model_state, frozen, jax.random.key(0))
    assert step == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("name", STAGES)
def test_a_program_serves_every_seed(name, config):
    """So that what one seed compiled is there for the next."""
    images, labels = batch()
    programs = set()
    for seed in (0, 1):
        config.seed = seed
        stage = sgd_stage(config, name)
        state = jax.eval_shape(stage.init, jax.random.key(0))
        arguments = state, stage.frozen_shapes(), tiny.as_batch(images, labels), stage.training_key
        programs.add(str(jax.make_jaxpr(stage.train_step)(*arguments)))
    assert len(programs) == 1


def test_microbatches_make_the_update_of_the_whole_batch(config):
    gradient_codebook(config)
    images, labels = batch()
    state, outcomes = None, []
    for microbatches in (1, 4):
        config.tokenizer.microbatches = microbatches
        stage = sgd_stage(config, "tokenizer")
        state = state or jax.jit(stage.init)(jax.random.key(0))
        frozen = frozen_of(stage)
        after, metrics = jax.jit(stage.train_step)(
            state, frozen, tiny.as_batch(images, labels), stage.training_key
        )
        del metrics["batch_perplexity"]
        outcomes.append((step_gradient(state, after), metrics))
    assert_close(*outcomes)


def test_dead_codes_of_a_gradient_are_replaced_after_the_update_and_have_no_past(config):
    """Neither in the optimizer nor in the average of the weights; also noted by one microbatch."""
    gradient_codebook(config)
    config.tokenizer.microbatches = 2
    # Dead is what one of the two does not use.
    config.tokenizer.model.quantizer.update({"restart_below": 1.0, "decay": 0.0})
    stage = tiny.make_stage(config, "tokenizer", "anywhere")
    images, labels = batch()
    state = jax.jit(stage.init)(jax.random.key(0))
    moments = jax.tree.map(jnp.ones_like, state.model.opt_state)
    state = state.replace(model=state.model.replace(opt_state=moments))
    after, _ = jax.jit(stage.train_step)(
        state, {"reconstruction": {}}, tiny.as_batch(images, labels), stage.training_key
    )

    notes = after.model.model_state["quantizer"]["quantizer"]
    new = np.asarray(after.model.params["quantizer"]["codebook"])
    replaced = (new == notes["restart_at"]).all(-1)
    assert 0 < replaced.sum() < 32 and not notes["dead"].any()
    average = np.asarray(after.model.ema["quantizer"]["codebook"])
    np.testing.assert_array_equal(average[replaced], new[replaced])
    assert (average[~replaced] != new[~replaced]).any(-1).all()
    adam = [x for x in after.model.opt_state[1] if hasattr(x, "mu")]
    for moment in (adam[0].mu, adam[0].nu):
        codes = np.asarray(moment["quantizer"]["codebook"])
        assert not codes[replaced].any() and codes[~replaced].all(-1).all()
        assert all(np.any(x) for x in jax.tree.leaves(moment["decoder"]))


@pytest.mark.parametrize("name", STAGES)
def test_average_of_the_weights_is_evaluated(name):
    stage, state, frozen = trained(name)
    network = state.model
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), network.params)
    metrics = validation(stage, state, frozen)
    with_broken = state.replace(model=network.replace(params=broken))
    assert validation(stage, with_broken, frozen) == metrics
    without = state.replace(model=network.replace(ema=None))
    assert validation(stage, without, frozen) != metrics
    as_params = state.replace(model=network.replace(params=network.ema, ema=None))
    assert validation(stage, as_params, frozen) == pytest.approx(metrics)


def test_validation_counts_every_image_once():
    """As all held-out images at once do: no padding, no mean of means or of perplexities."""
    config = tiny.finished_run().config
    source = build_source(config.data.source, "validation", 16)
    (whole,) = evaluation_batches(
        source, tiny.CONDITION, tiny.DATA, batch_size=tiny.VALIDATION_IMAGES
    )
    assert whole["valid"].all()
    x = to_float(jnp.asarray(whole["image"]))

    stage, state, frozen = trained("tokenizer")
    metrics = validation(stage, state, frozen)
    variables = {"params": state.model.weights, **state.model.model_state}
    y, tokens, _, _ = jax.jit(stage.model.apply)(variables, x)
    frequency = np.bincount(np.ravel(tokens.codes), minlength=32) / tokens.codes.size
    entropy = -sum(p * np.log(p) for p in frequency if p)
    assert metrics["codebook_usage"] == pytest.approx(np.mean(frequency > 0))
    assert metrics["codebook_perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert metrics["l2"] == pytest.approx(float(jnp.mean((x - y) ** 2)), rel=1e-5)
    squared = jnp.mean((x - jnp.clip(y, -1, 1)) ** 2, axis=(1, 2, 3))
    assert metrics["psnr"] == pytest.approx(float(jnp.mean(10 * jnp.log10(4 / squared))), rel=1e-5)

    metrics = validation(*trained("prior"))
    assert metrics["unigram_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert {f"loss_at_{ratio}" for ratio in (0.25, 0.5, 0.75, 1.0)} < set(metrics)


def test_usage_is_of_the_whole_pass_and_not_of_a_batch():
    """Two batches of different codes: the usage is of both together."""
    stage, state, frozen = trained("tokenizer")
    images, _ = batch()
    batches = [
        {"image": x, "valid": np.ones(8, bool)} for x in (np.asarray(images), np.zeros_like(images))
    ]

    def usage(batches):
        return stage.evaluate(state, frozen, batches, jax.device_put)[0]["codebook_usage"]

    encode = jax.jit(stage.model.apply, static_argnames="method")
    variables = {"params": state.model.weights, **state.model.model_state}
    codes = [
        set(np.ravel(encode(variables, to_float(b["image"]), method="encode").codes).tolist())
        for b in batches
    ]
    assert codes[0] != codes[1]
    assert usage(batches) == pytest.approx(len(codes[0] | codes[1]) / 32)
    assert usage(batches[:1]) == pytest.approx(len(codes[0]) / 32)


def test_a_best_metric_that_is_none_is_told_with_the_first_evaluation(config, tmp_path):
    config.tokenizer.best_metric = "psrn"
    config.tokenizer.checkpoint_every = 100
    with pytest.raises(InputError, match=r"best_metric=psrn: .*psnr.*step 6 is saved"):
        tiny.train(config, "tokenizer", tmp_path)
    config.tokenizer.best_metric = "psnr"
    assert tiny.final_state(config, "tokenizer", tmp_path).step == 6


@pytest.mark.parametrize(
    ("images", "mode", "expected"),
    [(0, "min", "frechet.images, for example"), (8, "max", "smallest; set min")],
)
def test_a_distance_as_the_best_metric(config, tmp_path, images, mode, expected):
    config.tokenizer.update({"best_metric": "rFD-lite1", "best_mode": mode})
    config.tokenizer.frechet.images = images
    with pytest.raises(InputError, match=expected):
        tiny.make_stage(config, "tokenizer", tmp_path)


class Breaks(TokenizerStage):
    """Its l2 term is not a number in the fifth step."""

    def train_step(self, state, frozen, batch, key, phase=None):
        sound = self.reconstruction_loss

        def broken_loss(*args):
            loss, terms = sound(*args)
            broken = jnp.where(state.step == 4, jnp.nan, 0.0) * loss
            return loss + broken, {**terms, "l2": terms["l2"] + broken}

        with mock.patch.object(self, "reconstruction_loss", broken_loss):
            return super().train_step(state, frozen, batch, key, phase)


def test_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.tokenizer.loss.l1 = 1.0
    config.tokenizer.checkpoint_every = 1
    stage = Breaks("tokenizer", config, epath.Path(tmp_path))
    message = r"tokenizer: step 5: l2 is nan, .*last good checkpoint is step 4 in .*learning rate"
    with pytest.raises(TrainingError, match=message) as e:
        tiny.train(config, "tokenizer", tmp_path, stage)
    assert "\n" not in str(e.value)
    kept = {p.name for p in (tmp_path / "tokenizer" / "checkpoints").iterdir()}
    assert kept == {"3", "4"}
    # Clipping, which the message advises, goes on from the same state.
    config.tokenizer.optimizer.clip_norm = 1.0
    state = tiny.final_state(config, "tokenizer", tmp_path)
    assert state.step == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
