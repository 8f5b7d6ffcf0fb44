"""The semantic-enhanced perceptual loss: its layers, their weights, and its networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vqjax.errors import InputError
from vqjax.features.efficientnet_lite import load_efficientnet_lite
from vqjax.features.vgg16 import VGG16, VGG16Classifier
from vqjax.losses import semantic
from vqjax.losses.perceptual import load_lpips
from vqjax.losses.reconstruction import LossWeights, ReconstructionLoss
from vqjax.losses.semantic import LAYERS, SemanticLoss
from vqjax.registry import from_fields

RELUS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
# Of table 6, the first row first.
COUNTED = {
    "low": {*RELUS},
    "A": {*RELUS, "logit"},
    "B": {*RELUS[1:], "logit"},
    "C": {*RELUS[2:], "logit"},
    "D": {*RELUS[3:], "logit"},
    "semantic": {"relu5_3", "logit"},
    "E": {"logit"},
}
SHAPES = {name: (8 // 2**i, 12 // 2**i, 4 + i) for i, name in enumerate(RELUS[:3])}
SHAPES |= {"relu4_3": (2, 3, 7), "relu5_3": (1, 1, 9), "logit": (11,)}


def loss_of(**settings):
    """With EfficientNet's logits of small images."""
    fields = {"semantic": 1.0, "semantic_logits": "efficientnet_lite0", "semantic_side": 40}
    return LossWeights(**{**fields, **settings}).semantic_loss


def random_features(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, *shape)) for name, shape in SHAPES.items()}


def distance(loss, monkeypatch):
    """Of random features, and that of each layer by itself: its squares over H W C."""
    a, b = random_features(0), random_features(1)
    sides = iter((a, b))
    with monkeypatch.context() as patch:
        patch.setattr(
            SemanticLoss,
            "features",
            lambda *_: {k: jnp.asarray(x, jnp.float32) for k, x in next(sides).items()},
        )
        found = loss({}, jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 16, 16, 3)))
    each = {
        name: ((a[name] - b[name]) ** 2).reshape(2, -1).sum(1) / np.prod(shape)
        for name, shape in SHAPES.items()
    }
    return found, each


@pytest.mark.parametrize("variant", COUNTED)
def test_variants_count_their_layers_once_each(variant, monkeypatch):
    found, each = distance(loss_of(semantic_layers=variant), monkeypatch)
    assert found.shape == (2,) and found.dtype == jnp.float32
    expected = sum(each[name] for name in COUNTED[variant])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert LAYERS.keys() == COUNTED.keys()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_ratio_goes_from_low_to_semantic(ratio, monkeypatch):
    """Eq. 3; at its ends the other one's layers are not even computed."""
    loss = loss_of(semantic_ratio=ratio)
    found, each = distance(loss, monkeypatch)
    low, semantic = (sum(each[name] for name in COUNTED[v]) for v in ("low", "semantic"))
    np.testing.assert_allclose(found, ratio * semantic + (1 - ratio) * low, rtol=1e-6)
    computed = {0.0: COUNTED["low"], 0.3: COUNTED["A"], 1.0: COUNTED["semantic"]}[ratio]
    assert loss.weights.keys() == computed


def images(seed):
    # Not square, and with a last map of two positions.
    values = np.random.default_rng(seed).uniform(-1, 1, (2, 24, 32, 3))
    return jnp.asarray(values, jnp.float32)


@functools.cache
def frozen():
    return jax.device_put(loss_of().load_frozen())


def test_features_are_those_of_the_published_networks():
    """Their squares summed in float64 are the distance; the reconstruction's loss has it so."""
    weights = LossWeights(
        **{"l2": 0.0, "perceptual": 0.0, "semantic": 0.7, "semantic_ratio": 0.25},
        **{"semantic_logits": "efficientnet_lite0", "semantic_side": 40},
    )
    loss, own = ReconstructionLoss(weights), {"semantic": frozen()}
    pair = images(0), images(1)
    total, terms = jax.jit(loss)(own, *pair)

    trunk = load_lpips("vgg16")[1]["params"]["trunk"]
    module, lite0 = load_efficientnet_lite("lite0")

    @jax.jit
    def features(trunk, lite0, x):
        maps = VGG16().apply({"params": trunk}, x)
        seen = jax.image.resize(x, (2, 40, 40, 3), "bilinear")
        return {**maps, "logit": module.apply(lite0, seen, method="logits")}

    a, b = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), features(trunk, lite0, x)) for x in pair
    )
    each = {name: ((a[name] - b[name]) ** 2).mean() for name in a}
    expected = each["relu5_3"] + 0.25 * each["logit"]
    expected += 0.75 * sum(each[name] for name in RELUS[:4])
    np.testing.assert_allclose(terms["semantic"], expected, rtol=1e-4)
    np.testing.assert_allclose(total, 0.7 * expected, rtol=1e-4)
    assert set(terms) == {"semantic"}


def test_gradient_points_to_the_target_and_vanishes_there():
    loss, target = loss_of(), images(2)

    @jax.jit
    def of(own, x):
        return jax.value_and_grad(lambda x: loss(own, x, target).sum())(x)

    near = target + 0.1 * images(3)
    value, gradient = of(frozen(), near)
    least, rest = of(frozen(), target)
    assert least < 1e-6 * value and jnp.linalg.norm(rest) < 1e-3 * jnp.linalg.norm(gradient)
    assert of(frozen(), near - 1e-2 * gradient / jnp.linalg.norm(gradient))[0] < value


@pytest.mark.parametrize(
    ("settings", "networks"),
    [
        ({}, {"vgg16", "efficientnet_lite0"}),
        ({"semantic_layers": "E"}, {"efficientnet_lite0"}),
        ({"semantic_ratio": 0.0}, {"vgg16"}),
        ({"semantic_ratio": 0.0, "semantic_logits": "vgg16"}, {"vgg16"}),
    ],
)
def test_no_network_is_loaded_that_nothing_looks_through(settings, networks):
    loss = loss_of(**settings)
    own, shapes = loss.load_frozen(), loss.frozen_shapes()
    assert own.keys() == set(loss.networks) == networks
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, shapes)
    fields = dataclasses.asdict(LossWeights(perceptual=0.0, semantic=1.0))
    fields |= {"semantic_logits": "efficientnet_lite0", **settings}
    assert LossWeights(**fields).networks == networks
    assert LossWeights(**{**fields, "semantic": 0.0, "perceptual": 1.0}).networks == {"vgg16"}


def test_the_logits_are_those_of_the_file_that_is_named(tmp_path, monkeypatch):
    loss = loss_of(
        **{"semantic_logits": "vgg16", "semantic_side": 48},
        **{"semantic_weights": "v.pth", "semantic_sha256": "0123abcd"},
    )
    asked, seen = [], []

    def load(file, sha256):
        asked.append((str(file), sha256))
        return VGG16Classifier(), {"params": "of the file"}, sha256

    monkeypatch.setattr(semantic, "load_vgg16", load)
    assert loss.load_frozen() == {"vgg16": {"params": "of the file"}}
    assert asked == [("v.pth", "0123abcd")]
    shapes = loss.frozen_shapes()["vgg16"]["params"]
    assert shapes.keys() == {"trunk", "fc1", "fc2", "fc3"}

    def logits(self, images):
        seen.append(images.shape)
        return jnp.zeros((2, 1000))

    monkeypatch.setattr(VGG16Classifier, "__call__", lambda self, x: {"relu5_3": x, "relu1_2": x})
    monkeypatch.setattr(VGG16Classifier, "logits", logits)
    features = loss.features({"vgg16": {}}, images(0))
    assert features.keys() == COUNTED["semantic"]
    assert features["relu5_3"].shape == (2, 24, 32, 3) and seen == [(2, 48, 48, 3)]


def test_a_missing_or_wrong_file_is_one_clear_line(tmp_path):
    address = "https://download.pytorch.org/models/vgg16-397923af.pth"
    message = rf"loss.semantic_weights\): fetch it from {address}, or .*logits=efficientnet_lite0"
    with pytest.raises(InputError, match=message):
        loss_of(semantic_logits="vgg16").load_frozen()
    file = tmp_path / "vgg16.pth"
    named = loss_of(semantic_logits="vgg16", semantic_weights=str(file))
    with pytest.raises(InputError, match=rf"vgg16.pth: No such file.*; fetch VGG16 from {address}"):
        named.load_frozen()
    file.write_bytes(b"another file")
    with pytest.raises(InputError, match=r"has sha256 .*, expected 397923af: "):
        named.load_frozen()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"semantic_ratio": 1.1}, r"semantic_ratio=1.1: a number in \[0, 1\] is needed"),
        ({"semantic_ratio": -0.1}, r"semantic_ratio=-0.1: a number in \[0, 1\] is needed"),
        ({"semantic_layers": "F"}, r"semantic_layers='F': .*valid: A, B, C, D, E, low, semantic"),
        ({"semantic_side": 31}, r"semantic_side=31: at least 32 is needed"),
        (
            {"semantic_logits": "efficientnet_lite0", "semantic_weights": "v.pth"},
            r"semantic_weights='v.pth': semantic_logits=vgg16 beside a file of it is needed",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=rf"^config\.tokenizer\.loss\.{message}"):
        from_fields("tokenizer.loss", LossWeights, {"semantic": 1.0, **settings})


def test_small_images_are_refused():
    small = jnp.zeros((1, 15, 32, 3))
    with pytest.raises(InputError, match=r"15x32, expected at least 16x16"):
        loss_of()({}, small, small)


def test_a_step_of_a_tokenizer_has_the_term_and_so_has_its_evaluation(tmp_path):
    config = tiny.get_config()
    config.tokenizer.discriminator.model = {"name": "none"}
    config.tokenizer.loss.update({"semantic": 1.0, "semantic_logits": "efficientnet_lite0"})
    stage = tiny.make_stage(config, "tokenizer", tmp_path)
    state = jax.eval_shape(stage.init, jax.random.key(0))
    batch = tiny.as_batch(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, np.int32))
    shapes = stage.frozen_shapes()
    _, metrics = jax.eval_shape(stage.train_step, state, shapes, batch, stage.training_key)
    assert "semantic" in metrics and "perceptual" not in metrics
    variables = stage.variables(state.model.params, state.model.model_state, shapes)
    sums, _ = jax.eval_shape(stage.eval_step, variables, shapes, batch["image"], np.ones(8, bool))
    assert "semantic" in sums
