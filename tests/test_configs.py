"""Every experiment builds, full-size ones as shapes only, and says how large it is."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.conditions import CaptionCondition, ClassCondition, NoCondition
from vqjax.errors import InputError
from vqjax.parallel import make_mesh
from vqjax.runs.build import check_config
from vqjax.runs.stages import stages_to_train
from vqjax.training import loop
from vqjax.training.optimizers import make_optimizer
from vqjax.training.stage_kinds import build_stage as build_kind

FILES = sorted(f.stem for f in Path(common.__file__).parent.glob("*_*.py") if f.stem[0] != "_")
ARGUMENTS = {
    "openmoji_effvqgan": [
        *("", "res=512,f=16,tokenizer=vit", "res=64,f=8,gan=projected"),
        "res=1024,f=16,size=base",
    ],
    "ffhq_effvqgan": [
        *("codebook=plain", "f=8,res=1024", "block=1,halo=4,T=16"),
        *("tokenizer=vqgan", "f=32,tokenizer=vqgan", "res=512,tokenizer=vit"),
    ],
    "celebahq_effvqgan": [""],
    "imagenet_effvqgan": ["", "f=4,tokenizer=vqgan"],
    "imagenet_seqgan": [
        *("", "prior=ar,size=large", "phases=1,alpha=0,codebook=fn,perceptual=E"),
        *("decoder=conv,alpha=0.5", "decoder=attention,codebook=plain"),
    ],
    "ffhq_seqgan": ["prior=ar"],
    "lsun_seqgan": ["", "set=cat,prior=ar", "set=bedroom"],
    "folder_seqgan": ["", "res=256,f=16,size=base,prior=nar"],
    "openmoji_seqgan": ["", "res=64,f=8,prior=nar"],
    "ffhq_mqvae": ["", "f=16,mask=random,size=base", "f=32,mask=none"],
    "imagenet_mqvae": ["f=16,mask=none,demask=self_attention"],
    "coco_mqvae": ["size=base"],
    "folder_mqvae": ["", "res=256,f=16,size=base,mask_ratio=0.5"],
    "openmoji_mqvae": ["", "mask_ratio=0.5,demask=direction_constrained", "mask=none"],
}


def load(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def build_stage(config, name, workdir, classes):
    conditions = {
        "none": NoCondition(),
        "class": ClassCondition(tuple(map(str, range(classes)))),
        "caption": CaptionCondition(config.condition.get("length", 64)),
    }
    condition = conditions[config.condition.name]
    return build_kind(config, name, epath.Path(workdir), condition)


def parameters(stage):
    shapes = jax.eval_shape(stage.init_variables, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


def one_device():
    return make_mesh({"data": 1}, jax.devices()[:1])


def test_every_config_is_tested():
    assert set(FILES) == set(ARGUMENTS)


@pytest.mark.parametrize(("name", "arg"), [(n, a) for n, args in ARGUMENTS.items() for a in args])
def test_both_stages_build(name, arg, tmp_path):
    """And what a workdir stores of the config is the config."""
    config = load(name, arg)
    check_config(config)
    for stage_name in stages_to_train(config):
        assert parameters(build_stage(config, stage_name, tmp_path, 10)) > 0
    stored = ConfigDict(json.loads(config.to_json()))
    assert json.loads(stored.to_json()) == json.loads(config.to_json())
    stages = [build_stage(c, "prior", tmp_path, 10) for c in (config, stored)]
    assert stages[0].model == stages[1].model
    assert stages[0].tokenizer == stages[1].tokenizer


@pytest.mark.parametrize("name", ["ffhq_effvqgan", "imagenet_effvqgan"])
@pytest.mark.parametrize("f", [32, 16, 8, 4])
def test_parameters_of_the_docstring(f, name, tmp_path):
    """Paper 000: the prior has 185 M parameters."""
    config = load(name, f"f={f}")
    docstring = importlib.import_module(f"configs.{name}").__doc__
    (row,) = re.findall(rf"f = {f} (.*)", docstring)
    said = [int(number.replace(",", "")) for number in row.split()]
    stages = [build_stage(config, stage, tmp_path, 1000) for stage in ("tokenizer", "prior")]
    if len(said) > 2:
        other = load(name, f"f={f},tokenizer=vqgan")
        stages.append(build_stage(other, "tokenizer", tmp_path, 1000))
    counted = [parameters(stage) for stage in stages]
    assert said == counted
    assert counted[1] == pytest.approx(185e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("f", [16, 8])
def test_full_size_train_steps_as_shapes(f, tmp_path):
    config = load("ffhq_effvqgan", f"f={f}")
    mesh = one_device()
    for name in ("tokenizer", "prior"):
        stage = build_stage(config, name, tmp_path, 1)
        state = loop.abstract_state(stage, mesh)
        batch = loop.batch_shapes(config[name].batch_size, 256, 0, mesh)
        after, metrics = jax.eval_shape(
            stage.train_step, state, stage.frozen_shapes(), batch, stage.training_key
        )
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert all(x.shape == () for x in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer", "prior"])
@pytest.mark.parametrize("f", [16, 8])
def test_full_size_train_step(f, name, tmp_path):
    """For real, of one image."""
    config = load("ffhq_effvqgan", f"f={f}")
    config[name].batch_size = 1
    mesh = one_device()
    stage = build_stage(config, name, tmp_path, 1)
    state = jax.jit(stage.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(
        lambda x: rng.normal(0, 0.05, x.shape).astype(x.dtype), stage.frozen_shapes()
    )
    images = rng.integers(0, 256, (1, 256, 256, 3), np.uint8)
    before = jax.tree.leaves(state.model.params)[0].copy()
    step = loop.jit_train_step(stage, mesh)
    for _ in range(2):
        state, metrics = step(
            state,
            frozen,
            {"image": images, "condition": np.zeros((1, 0), np.int32)},
            stage.training_key,
        )
        assert all(np.isfinite(x) for x in jax.tree.leaves(metrics)), metrics
    assert int(state.step) == 2
    assert not np.array_equal(before, jax.tree.leaves(state.model.params)[0])


@pytest.mark.parametrize(
    ("name", "arg"), [("ffhq_effvqgan", ""), ("openmoji_effvqgan", "gan=projected")]
)
def test_the_projected_discriminator_learns_at_one_rate_to_the_end(name, arg):
    settings = load(name, arg).tokenizer.discriminator.optimizer
    _, rate = make_optimizer("tokenizer.discriminator.optimizer", settings, 1000)
    assert rate(0) == rate(999) == settings.learning_rate


def test_wrong_arguments():
    with pytest.raises(InputError, match="did you mean 'res'"):
        load("openmoji_effvqgan", "reso=64")
    with pytest.raises(InputError, match="f takes a value of type int"):
        load("ffhq_effvqgan", "f=large")
    with pytest.raises(InputError, match="f=2: valid: 4, 8, 16, 32"):
        load("ffhq_effvqgan", "f=2")


def test_full_size_codebooks():
    """What keeps the codes in use is the default; the paper's own has nothing of it."""
    codebooks = [load("ffhq_effvqgan", arg) for arg in ("", "codebook=plain")]
    ema, plain = (config.tokenizer.model.quantizer for config in codebooks)
    assert (ema.learning, ema.latent_norm, ema.restart_below) == ("ema", "layer", 0.1)
    assert (plain.learning, plain.latent_norm, plain.restart_below) == ("gradient", "none", 0.0)
    assert ema.code_dim == plain.code_dim == 256
    with pytest.raises(InputError, match="codebook=vq: valid: ema, plain"):
        load("ffhq_effvqgan", "codebook=vq")


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("", (False, False)),
        ("res=512", (False, True)),
        ("f=32,res=512", (False, False)),
        ("res=1024", (True, True)),
        ("res=1024,remat=false", (False, False)),
        ("tokenizer=vqgan,remat=true", (True, True)),
    ],
)
def test_rematerialisation(arg, expected):
    config = load("ffhq_effvqgan", arg)
    assert (config.tokenizer.model.remat, config.prior.model.remat) == expected


def test_vqgan_of_table_7(tmp_path):
    """The codes and the losses of the published models of the two data sets."""
    faces, imagenet = (
        load(f"{name}_effvqgan", "tokenizer=vqgan,codebook=plain") for name in ("ffhq", "imagenet")
    )
    for config, codes, weight in ((faces, 1024, 0.8), (imagenet, 16_384, 0.75)):
        tokenizer, discriminator = config.tokenizer, config.tokenizer.discriminator
        quantizer = tokenizer.model.quantizer
        assert (quantizer.num_codes, quantizer.learning) == (codes, "gradient")
        assert (tokenizer.loss.l1, tokenizer.loss.l2, tokenizer.loss.perceptual) == (1, 0, 1)
        assert (discriminator.model.name, discriminator.weight) == ("patchgan", weight)
        assert not discriminator.augment
        for optimizer in (tokenizer.optimizer, discriminator.optimizer):
            assert optimizer.learning_rate == pytest.approx(7.2e-5)
            assert (optimizer.b1, optimizer.b2, optimizer.schedule) == (0.5, 0.9, "constant")
    prior = build_stage(imagenet, "prior", tmp_path, 1000)
    said = importlib.import_module("configs.imagenet_effvqgan").__doc__
    assert f"The prior on it has {parameters(prior):,} parameters" in said
    assert load("imagenet_effvqgan").tokenizer.model.quantizer.num_codes == 1024


def seqgan_sets():
    return [
        ("imagenet_seqgan", "", 1_281_167, 100),
        ("ffhq_seqgan", "", 60_000, 320),
        ("lsun_seqgan", "set=church", 126_227, 1),
        ("lsun_seqgan", "set=cat", 1_657_266, 1),
        ("lsun_seqgan", "set=bedroom", 3_033_042, 1),
    ]


@pytest.mark.parametrize(("name", "arg", "images", "epochs"), seqgan_sets())
def test_epochs_of_seqgan(name, arg, images, epochs):
    """Table 9 has them, beside the batches and the steps."""
    tokenizer = load(name, arg).tokenizer
    assert tokenizer.batch_size * tokenizer.steps / images == pytest.approx(epochs, rel=0.02)


@pytest.mark.parametrize(
    ("arg", "tokenizer", "decoder", "prior"),
    [
        ("", 54.5, 57.9, 172),
        ("prior=ar,size=large", 54.5, 57.9, 305),
        ("decoder=conv", 70.0, None, 172),
        ("decoder=attention,prior=ar", 61.4, None, 172),
    ],
)
def test_parameters_of_seqgan(arg, tokenizer, decoder, prior, tmp_path):
    """Paper 001, tables 1 and 8 and section 6.1, in millions; phase 2 has phase 1's encoder."""
    config = load("imagenet_seqgan", arg)
    config.condition.name = "none"
    stages = {s: build_stage(config, s, tmp_path, 0) for s in stages_to_train(config)}
    assert ("decoder" in stages) == (decoder is not None)
    if decoder:
        model = stages["decoder"].model
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 256, 256, 3)))
        counted = sum(x.size for x in jax.tree.leaves(shapes["params"]))
        assert counted / 1e6 == pytest.approx(decoder, rel=0.01)
    assert parameters(stages["tokenizer"]) / 1e6 == pytest.approx(tokenizer, rel=0.01)
    assert parameters(stages["prior"]) / 1e6 == pytest.approx(prior, rel=0.01)


@pytest.mark.parametrize(("prior", "held", "end"), [("ar", 80_000, 5e-6), ("nar", 50_000, 0.0)])
def test_rates_of_seqgan(prior, held, end):
    """Tables 9 and 10: where the rates begin to fall, and where they end."""
    config = load("imagenet_seqgan", f"prior={prior}")
    rates = {}
    for stage in stages_to_train(config):
        rates[stage] = make_optimizer(stage, config[stage].optimizer, config[stage].steps)[1]
    assert rates["prior"](held) == pytest.approx(1e-4)
    assert rates["prior"](held + 5_000) < 0.999e-4
    assert rates["prior"](1_500_000) == pytest.approx(end, rel=1e-3, abs=1e-12)
    assert rates["tokenizer"](0) == pytest.approx(1e-4)
    assert rates["tokenizer"](500_000) == pytest.approx(5e-5)
    assert rates["decoder"](0) == rates["decoder"](199_999) == pytest.approx(5e-5)
    _, rate = make_optimizer("", load("lsun_seqgan").tokenizer.optimizer, 4_000)
    assert rate(0) == rate(3_999) == pytest.approx(5e-5)


def test_ablations_of_seqgan(tmp_path):
    """One phase on ImageNet has the smaller batches of section 6.1, also with a larger decoder."""
    for arg in ("phases=1", "decoder=conv"):
        config = load("imagenet_seqgan", arg)
        assert config.stages == ("tokenizer", "prior")
        assert (config.tokenizer.batch_size, config.prior.batch_size) == (64, 64)
        assert (config.tokenizer.steps, config.prior.steps) == (500_000, 500_000)
    assert load("imagenet_seqgan").tokenizer.batch_size == 256
    with pytest.raises(InputError, match=r"semantic_ratio=1.5: a number in \[0, 1\]"):
        build_stage(load("imagenet_seqgan", "alpha=1.5"), "tokenizer", tmp_path, 1000)


@pytest.mark.parametrize(
    ("arg", "tokenizer", "prior"),
    [
        ("", 35.2, 307.3),
        ("size=base", 35.2, 609.6),
        ("f=16", 112.6, 305.1),
        ("f=16,size=base", 112.6, 607.4),
    ],
)
def test_parameters_of_mqvae(arg, tokenizer, prior, tmp_path):
    """Paper 002, section 4.1: Stackformer has 307 and 607 million."""
    config = load("ffhq_mqvae", arg)
    first, second = (build_stage(config, stage, tmp_path, 0) for stage in ("tokenizer", "prior"))
    # A codebook of moving averages is no parameter.
    codebook = 1024 * 256
    assert round((parameters(first) + codebook) / 1e6, 1) == tokenizer
    assert round(parameters(second) / 1e6, 1) == prior
    assert prior == pytest.approx(607 if "base" in arg else 307, rel=0.01)
    said = importlib.import_module("configs.ffhq_mqvae").__doc__
    assert f" {tokenizer} at f = " in said and f" {prior}" in said


@pytest.mark.parametrize(
    ("arg", "mask", "demask", "tokens"),
    [
        ("", "adaptive", "mask_updating", 768),
        ("f=16,mask_ratio=0.75,mask=random", "random", "mask_updating", 64),
        ("f=16,mask=none", "none", "none", 256),
        ("f=16,mask=none,demask=self_attention", "none", "self_attention", 256),
        ("f=32,mask=none", "none", "none", 64),
        ("f=16,mask_ratio=0.5,demask=none", "adaptive", "none", 128),
    ],
)
def test_rows_of_tables_6_and_7(arg, mask, demask, tokens, tmp_path):
    model = build_stage(load("ffhq_mqvae", arg), "tokenizer", tmp_path, 0).model
    assert (model.mask, model.demask) == (mask, demask)
    assert model.num_tokens(model.grid(256, 256)) == tokens


def test_a_mask_ratio_without_a_mask_is_refused():
    with pytest.raises(InputError, match=r"mask_ratio=0.5: mask=none masks nothing, leave it out"):
        load("ffhq_mqvae", "mask=none,mask_ratio=0.5")


def test_splits_of_coco_captions():
    """Those of TFDS's builder, which has no "validation"."""
    source = load("coco_mqvae").data.source
    assert {source.train_split, source.validation_split} <= {"train", "val", "test", "restval"}


def test_ablations_of_the_sampler():
    """A block is sampled in no more steps than it has cells."""
    assert load("ffhq_effvqgan").sampling.steps == 8
    assert load("ffhq_effvqgan", "T=32").sampling.steps == 32
    assert load("ffhq_effvqgan", "block=2").sampling.steps == 4
    assert load("ffhq_effvqgan", "block=1").sampling.steps == 1
