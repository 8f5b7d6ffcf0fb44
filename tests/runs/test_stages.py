"""The stages of a config: which there are, whose codes and whose decoder they use."""

import functools
import operator

import pytest
import tiny
from etils import epath
from ml_collections import ConfigDict

from configs import common
from vqjax.errors import InputError
from vqjax.runs.build import build_sampling, build_stage_prior, build_stage_tokenizer, check_config
from vqjax.runs.stages import (
    all_stages,
    check_weights_will_be_there,
    decoder_of,
    decoders_of,
    source_of_start,
    stages_of,
    stages_to_train,
    tokenizer_of,
    trained_stage,
)
from vqjax.runs.workdir import write_config


def three_stages():
    """Tokenizer, decoder and prior."""
    config = tiny.get_config("path=x")
    config.decoder = common.decoder_stage(config.tokenizer)
    config.stages = ("tokenizer", "decoder", "prior")
    return config


def test_stages_by_kind_and_whose_decoder_makes_the_images():
    config = three_stages()
    assert all_stages(config) == ["tokenizer", "decoder", "prior"]
    assert stages_of(config, "tokenizer", "decoder") == ["tokenizer", "decoder"]
    assert [tokenizer_of(config, name) for name in all_stages(config)] == ["tokenizer"] * 3
    assert decoder_of(config, "prior") == "decoder"
    assert decoder_of(config, "tokenizer") == "tokenizer"
    for name in all_stages(config):
        assert decoders_of(config, name) == ["tokenizer", "decoder"]
    del config["decoder"]
    assert decoder_of(config, "prior") == "tokenizer"


def test_stages_of_other_names():
    """Two tokenizers and two priors in one config: each prior keeps to its own tokenizer."""
    config = tiny.get_config("path=x")
    config.coarse = config.tokenizer.copy_and_resolve_references()
    config.coarse_prior = config.prior.copy_and_resolve_references()
    config.coarse_prior.tokenizer = "coarse"
    assert all_stages(config) == ["coarse", "tokenizer", "coarse_prior", "prior"]
    assert decoder_of(config, "coarse_prior") == "coarse"
    assert decoder_of(config, "prior") == "tokenizer"
    config.stages = ("coarse,coarse_prior",)
    assert stages_to_train(config) == ["coarse", "coarse_prior"]
    check_config(config)


def test_a_tokenizer_needs_no_prior():
    config = tiny.get_config("path=x")
    for name in ("prior", "sampling"):
        del config[name]
    config.stages = ("tokenizer",)
    check_config(config)
    assert all_stages(config) == stages_to_train(config) == ["tokenizer"]
    assert build_stage_tokenizer(config, "tokenizer").num_codes == 32
    assert tiny.make_stage(config, "tokenizer", "anywhere").name == "tokenizer"


def test_of_one_kind_those_that_are_listed_come_last_in_their_order():
    config = three_stages()
    for name in ("another", "first"):
        config[name] = config.decoder.copy_and_resolve_references()
    assert all_stages(config) == ["tokenizer", "another", "first", "decoder", "prior"]
    config.stages = ("tokenizer", "decoder,another", "prior")
    assert all_stages(config) == ["tokenizer", "first", "decoder", "another", "prior"]
    assert decoder_of(config, "prior") == "another"


@pytest.mark.parametrize(
    "change", [{"depths": (4,)}, {"window": 4}, {"head_dim": 2}, {"quantizer.num_codes": 16}]
)
def test_a_decoder_keeps_the_codes_of_its_tokenizer(change):
    """Also where all weights have the same shapes."""
    config = three_stages()
    assert build_stage_tokenizer(config, "prior").num_codes == 32
    config.decoder.model.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=r"config.decoder.model makes other tokens than"):
        build_stage_tokenizer(config, "prior")


def test_what_a_config_leaves_out_has_its_default():
    config = tiny.get_config("path=x")
    for part, key in (("data", "crop"), ("prior", "use_from"), ("sampling", "top_p")):
        del config[part][key]
    check_config(config)
    assert config.data.crop == "random" and config.prior.use_from == ""
    assert config.sampling.top_p == 1.0


def test_weights_that_will_not_be_there_are_missed_before_any_training(tmp_path):
    config, workdir = three_stages(), epath.Path(tmp_path)
    check_weights_will_be_there(config, workdir)
    config.stages = ("tokenizer", "prior")
    with pytest.raises(InputError, match="there is no trained decoder in"):
        check_weights_will_be_there(config, workdir)
    (workdir / "decoder" / "checkpoints").mkdir(parents=True)
    check_weights_will_be_there(config, workdir)
    config.prior.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"prior\.init_from=.*nowhere is not the folder of a run"):
        check_weights_will_be_there(config, workdir)
    # A stage that goes on from its own checkpoint has what it started from.
    (workdir / "prior" / "checkpoints" / "3").mkdir(parents=True)
    check_weights_will_be_there(config, workdir)
    config.prior.init_from, config.tokenizer.use_from = "", str(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="elsewhere is not the folder of a run"):
        check_weights_will_be_there(config, workdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior.kind": "gan"}, r"config.prior.kind='gan': valid: decoder, prior, tokenizer"),
        ({"prior.tokenizer": "tokens"}, r"config.prior.tokenizer='tokens': .*valid: tokenizer"),
        ({"stages": ("prior", "sampler")}, r"config.stages has 'sampler'"),
        ({"extra": 1}, r"config.extra: there is no such setting"),
        ({"seed": -1}, r"config.seed=-1: a whole number from 0 to 4294967295 is needed"),
        ({"stages": "tokenizer"}, r"config.stages='tokenizer': names of stages are needed"),
        ({"data.flip": "x"}, r"config.data.flip='x': True or False is needed"),
        ({"tokenizer.use_from": 3}, r"config.tokenizer.use_from=3: a text is needed"),
        ({"sampling.stepz": 3}, r"config.sampling.stepz: the sampler of multigrained has no such"),
        ({"sampling.guidance_schedule": "cosine"}, r"guidance_schedule='cosine': .*constant, lin"),
        ({"sampling.decode_tile": -4}, r"config.sampling.decode_tile=-4: 0 or more"),
        ({"prior.batchsize": 3}, r"config.prior.batchsize: .* did you mean 'batch_size'"),
        ({"tokenizer.loss.l3": 3}, r"config.tokenizer.loss.l3: LossWeights has no such field"),
        ({"tokenizer.optimizer.lr": 3}, r"config.tokenizer.optimizer.lr: OptimizerSettings has no"),
        ({"tokenizer.discriminator.start_at": 3}, r"config.tokenizer.discriminator.start_at"),
        ({"data.flips": True}, r"config.data.flips: DataSettings has no such field; did you mean"),
        ({"data.workers": -1}, r"config.data.workers=-1: 0 or more is needed"),
        ({"prior.frechet.imags": 3}, r"config.prior.frechet.imags: .* did you mean 'images'"),
        ({"prior.frechet.images": 1}, r"config.prior.frechet.images=1: 0 for none, or at least 2"),
        ({"tokenizer.frechet.network": "vgg"}, r"frechet.network='vgg': .*efficientnet_lite1"),
        (
            {"prior.frechet.network": "inception", "prior.frechet.images": 8},
            r"config.prior.frechet.weights='': .* fetch https://.* and name the file here",
        ),
    ],
)
@pytest.mark.parametrize("adversary", [True, False])
def test_no_setting_of_a_config_file_is_dropped(change, message, adversary):
    """Also those that no command line could give, since their key is new."""
    config = tiny.get_config("path=x")
    if not adversary:
        config.tokenizer.discriminator.model = ConfigDict({"name": "none"})
    for key, value in change.items():
        *path, name = key.split(".")
        part = functools.reduce(operator.getitem, path, config)
        with part.unlocked():
            # A key that is there keeps its type.
            if name in part:
                del part[name]
            part[name] = value

    def check():
        check_config(config)
        stages_to_train(config)
        for name in all_stages(config):
            tiny.make_stage(config, name, "anywhere")

    with pytest.raises(InputError, match=message):
        check()


def test_sampling_settings_that_are_given_replace_the_config_s():
    config = tiny.get_config("path=x")
    prior = build_stage_prior(config, "prior", tiny.CONDITION)
    sampling = build_sampling(config, "prior", prior, {"steps": 7, "batch_size": 3})
    assert sampling.sampler.steps == 7 and sampling.generation.batch_size == 3
    assert build_sampling(config, "prior", prior).sampler.steps == config.sampling.steps
    with pytest.raises(InputError, match=r"guidance=2.0: this prior has never seen the null"):
        build_sampling(config, "prior", prior, {"guidance": 2.0})


def test_a_stage_of_another_run(tmp_path):
    config = tiny.get_config("path=x")
    here, there = tmp_path / "here", tmp_path / "there"
    write_config(config, there)
    assert trained_stage(config, epath.Path(here), "tokenizer").folder == here / "tokenizer"
    config.tokenizer.use_from, config.tokenizer.use = str(there), "best"
    found = trained_stage(config, epath.Path(here), "tokenizer")
    assert found.folder == there / "tokenizer"
    config.tokenizer.model.quantizer.num_codes = 16
    with pytest.raises(
        InputError, match=r"use_from=.*: its tokenizer is another model: .*codes was 32"
    ):
        trained_stage(config, epath.Path(here), "tokenizer")
    config.tokenizer.model.quantizer.num_codes = 32
    assert found.config.use == "best" and found.config.steps == 12
    write_config(config, there)
    with pytest.raises(InputError, match="that run took its tokenizer from"):
        trained_stage(config, epath.Path(here), "tokenizer")


def test_a_stage_may_start_from_another_model_of_its_name_and_kind(tmp_path):
    config = tiny.get_config("path=x")
    write_config(config, tmp_path)
    config.tokenizer.init_from = str(tmp_path)
    config.tokenizer.model.quantizer.num_codes = 16
    assert source_of_start(config, "tokenizer").folder == tmp_path / "tokenizer"
    config.tokenizer.model.name = "vqgan"
    with pytest.raises(InputError, match="its model is efficient_vqgan, here it is vqgan"):
        source_of_start(config, "tokenizer")
    config.tokenizer.kind = "decoder"
    with pytest.raises(InputError, match=r"of kind 'tokenizer', this one 'decoder'"):
        source_of_start(config, "tokenizer")
