"""Weights in the place of those of another model: one line says what does not fit."""

import shutil

import jax
import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.errors import InputError
from vqjax.generation.run import Run
from vqjax.losses.reconstruction import LossWeights
from vqjax.priors import build_prior
from vqjax.registry import from_fields
from vqjax.runs.build import build_stage_tokenizer, sampling_settings
from vqjax.runs.stages import check_weights_will_be_there, source_of_start, trained_stage
from vqjax.runs.weights import prior_shapes
from vqjax.runs.workdir import check_workdir, write_config

KINDS = ("autoregressive", "masked")


def config_of(prior="multigrained"):
    config = tiny.get_config("path=x")
    if prior != "multigrained":
        config.prior = common.prior_stage(prior)
        config.sampling = common.sampling(prior)
    return config


def with_decoder():
    config = config_of()
    config.decoder = common.decoder_stage(config.tokenizer)
    config.stages = ("decoder",)
    return config


def test_a_decoder_needs_a_tokenizer_in_the_config():
    config = with_decoder()
    del config.tokenizer
    message = r"config\.decoder\.tokenizer='tokenizer': the config has no stage of kind 'tokenizer'"
    with pytest.raises(InputError, match=message):
        build_stage_tokenizer(config, "decoder")


def test_a_decoder_needs_a_trained_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"there is no trained tokenizer in .*use_from"):
        check_weights_will_be_there(with_decoder(), epath.Path(tmp_path))


CHANGES = {
    "codebook": ({"tokenizer.model.quantizer.num_codes": 16}, r"num_codes was 32, is now 16"),
    # Of the same shapes.
    "codes": ({"tokenizer.model.window": 4}, r"tokenizer.model.window was 2, is now 4"),
    "grid": ({"data.resolution": 32}, r"data.resolution was 16, is now 32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_prior_of_other_codes_is_not_used_nor_gone_on_with(change, tmp_path):
    write_config(config_of(), tmp_path)
    config = config_of()
    config.prior.use_from = str(tmp_path)
    here = epath.Path(tmp_path / "here")
    assert trained_stage(config, here, "prior").folder == tmp_path / "prior"
    settings, message = CHANGES[change]
    config.update_from_flattened_dict(settings)
    with pytest.raises(InputError, match=f"its prior was trained on other codes: .*{message}"):
        trained_stage(config, here, "prior")
    with pytest.raises(InputError, match=f"made with another config: .*{message}"):
        check_workdir(config, tmp_path)


@pytest.mark.parametrize("there", KINDS)
def test_a_prior_of_another_kind_is_not_used_nor_started_from_nor_gone_on_with(there, tmp_path):
    here = next(kind for kind in KINDS if kind != there)
    write_config(config_of(there), tmp_path)
    for setting, call in (
        ("use_from", lambda config: trained_stage(config, epath.Path(tmp_path / "x"), "prior")),
        ("init_from", lambda config: source_of_start(config, "prior")),
    ):
        config = config_of(here)
        config.prior[setting] = str(tmp_path)
        with pytest.raises(InputError, match=rf"config\.prior\.{setting}=.*{there}.*{here}"):
            call(config)
    with pytest.raises(InputError, match=f"prior.model.name was {there}, is now {here}"):
        check_workdir(config_of(here), tmp_path)


@pytest.mark.parametrize("num_ids", [0, 3])
def test_arrays_of_one_kind_of_prior_never_pass_for_those_of_the_other(num_ids):
    """Where a config is changed behind a checkpoint, it is the shapes that tell."""
    shapes = []
    for name in KINDS:
        model = {"name": name, "dim": 8, "num_layers": 1, "num_heads": 2}
        prior = build_prior("prior.model", model, 7, (4, 4), num_ids)
        shapes.append(jax.tree.leaves_with_path(prior_shapes(prior, 16, bool(num_ids))))
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
    ("changes", "variables", "message"),
    [
        (CHANGES["codebook"][0], "tokenizer", r"\[32\b.* in the checkpoint.*\[16\b.* here"),
        (CHANGES["codebook"][0], "prior", r"3[23]\b.* in the checkpoint.*1[67]\b.* here"),
        (
            CHANGES["grid"][0],
            "prior",
            r"row is float32\[2, 32\] in the checkpoint, float32\[4, 32\] here",
        ),
        ({"prior.model": "masked"}, "prior", "is not in the checkpoint"),
    ],
)
def test_a_config_that_was_changed_behind_its_checkpoints(changes, variables, message, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny.finished_run().workdir, workdir)
    config = tiny.finished_run().config.copy_and_resolve_references()
    if "prior.model" in changes:
        config.prior.model = ConfigDict({"name": "masked", "dim": 32, "num_heads": 4})
        config.sampling = common.sampling("masked")
    else:
        config.update_from_flattened_dict(changes)
    write_config(config, workdir)
    run = Run(workdir, tiny.one_device())
    with pytest.raises(InputError, match=message) as caught:
        getattr(run, f"{variables}_variables")
    assert "\n" not in str(caught.value)


def test_no_probability_is_left_to_draw_from():
    with pytest.raises(InputError, match=r"config\.sampling\.top_p=0\.0: a number in \(0, 1\]"):
        sampling_settings(config_of(), "prior", {"top_p": 0.0})


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_share_of_semantic_layers_is_a_share(alpha):
    message = rf"config\.tokenizer\.loss\.semantic_ratio={alpha}: a number in \[0, 1\]"
    with pytest.raises(InputError, match=message):
        from_fields("tokenizer.loss", LossWeights, {"semantic_ratio": alpha})
