"""A run from Python: vqjax.load, encode, decode, sample, edit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import vqjax
from vqjax.errors import InputError
from vqjax.generation.run import Run
from vqjax.runs.stages import all_stages


@pytest.fixture(scope="module")
def run():
    return vqjax.load(tiny.finished_run().workdir, tiny.one_device())


def images(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_encode_and_decode(run):
    tokens = run.encode(images())
    assert tokens.codes.shape == tokens.positions.shape == (2, 16) and tokens.grid == (4, 4)
    rebuilt = run.decode(tokens)
    assert rebuilt.shape == (2, 16, 16, 3) and rebuilt.dtype == np.uint8
    # What is tokenized anew is another image of the same codebook.
    assert run.encode(rebuilt).codes.shape == (2, 16)


def test_sample_by_label_and_seed(run):
    first = run.sample(3, label="discs", seed=1)
    assert first.shape == (3, 16, 16, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(run.sample(3, label=1, seed=1), first)
    assert (run.sample(3, label="discs", seed=2) != first).any()
    assert (run.sample(3, label="discs", seed=1, temperature=0.1) != first).any()
    with pytest.raises(InputError, match="one of: checks, discs, stripes"):
        run.sample(1, label="cubes")
    with pytest.raises(InputError, match=r"config.sampling.temperatur: .* mean 'temperature'"):
        run.sample(1, temperatur=0.1)
    with pytest.raises(InputError, match="num_images=3: count=1 says how many"):
        run.sample(1, num_images=3)


def test_sparse_tokens_are_not_decoded_in_tiles(run, monkeypatch):
    _ = run.prior
    assert run.sampling(decode_tile=16).generation.decode_tile == 16
    monkeypatch.setattr(type(run.tokenizer), "token_kind", "sparse")
    with pytest.raises(InputError, match="decode_tile=16 needs a code for every cell"):
        run.sampling(decode_tile=16)


def test_edit_keeps_what_is_not_masked(run):
    (image,) = images(1)
    mask = np.zeros_like(image)
    mask[4:9, 3:8] = 255
    results = run.edit(image, mask, count=2, label="checks")
    hole = mask[..., 0] == 255
    assert (results[:, ~hole] == image[~hole]).all()
    assert (results[0] != results[1]).any()


def test_whichever_decoder_paints_them_the_tokens_are_the_same(tmp_path):
    """Figure 9 of paper 001."""
    workdir, mesh = tiny.run_with_a_decoder(tmp_path / "run"), tiny.one_device()
    runs = {name: Run(workdir, mesh, name) for name in ("", "tokenizer", "decoder")}
    stages = [(run.tokenizer_stage, run.other_decoder) for run in runs.values()]
    assert stages == [("decoder", ""), ("tokenizer", "tokenizer"), ("decoder", "")]
    drawn, painted = {}, {}
    for name, run in runs.items():
        conditions = run.conditions(3)
        tokens = run.sampler(3, run.sampling(), seed=1).tokens(conditions, 0)
        painted[name] = run.sample(3, seed=1)
        np.testing.assert_array_equal(painted[name], run.decode(tokens))
        drawn[name] = np.asarray(tokens.codes), np.asarray(run.encode(images()).codes)
    for name in ("tokenizer", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, drawn[name], drawn[""])
    np.testing.assert_array_equal(painted[""], painted["decoder"])
    assert (painted["tokenizer"] != painted["decoder"]).any()
    # What was there before the decoder stage is as it was.
    before = Run(tiny.finished_run().workdir, mesh).sample(3, seed=1)
    np.testing.assert_array_equal(painted["tokenizer"], before)
    assert runs["tokenizer"].steps["tokenizer"] == 12 and runs["decoder"].steps["decoder"] == 9


@pytest.mark.parametrize("name", ["prior", "decodr"])
def test_a_decoder_is_a_stage_that_trained_one(tmp_path, name):
    workdir = tiny.run_with_a_decoder(tmp_path / "run")
    with pytest.raises(InputError, match=f"decoder={name}: .* valid: decoder, tokenizer$"):
        vqjax.load(workdir, decoder=name)


def test_variables_are_those_of_the_stage_that_is_named(tmp_path):
    run = Run(tiny.run_with_two_of_each(tmp_path / "run"), tiny.one_device())
    found = {name: run.stage_variables(name) for name in all_stages(run.config)}
    steps = {"coarse": 9, "tokenizer": 12, "coarse_prior": 9, "prior": 12}
    assert run.steps == steps
    for first, second in (("tokenizer", "coarse"), ("prior", "coarse_prior")):
        average = tiny.final_state(run.config, first, run.workdir).model.ema
        jax.tree.map(np.testing.assert_array_equal, found[first]["params"], average)
        apart = jax.tree.map(lambda a, b: jnp.any(a != b), found[first], found[second])
        assert jax.tree.structure(found[first]) == jax.tree.structure(found[second])
        assert any(jax.tree.leaves(apart))


def test_a_run_of_a_tokenizer_alone(tmp_path):
    config = tiny.finished_run().config.copy_and_resolve_references()
    config.tokenizer.use_from = str(tiny.finished_run().workdir)
    for name in ("prior", "sampling"):
        del config[name]
    config.stages = ("tokenizer",)
    tiny.write_config(config, tmp_path)
    run = vqjax.load(tmp_path, tiny.one_device())
    assert run.decode(run.encode(images())).shape == (2, 16, 16, 3)
    with pytest.raises(InputError, match="is a run without a prior, so it draws no images"):
        run.sample(1)
