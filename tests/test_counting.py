"""Counts of codes and their statistics; counted is where there is a token, in every place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_tokenizer import large_parameters, random_images

from vqjax import quantizers
from vqjax.evaluation import pair_metrics
from vqjax.evaluation.rows import Rows
from vqjax.generation.run import Run
from vqjax.report import codebook
from vqjax.runs.workdir import write_condition, write_config
from vqjax.tokenizers.efficient_vqgan import EfficientVQGAN
from vqjax.tokens import Tokens

GAPS = 7

# Compiled, as most of the operations of an eager call would be one by one.
perplexity, usage = jax.jit(quantizers.perplexity), jax.jit(quantizers.usage)
count_codes = jax.jit(quantizers.count_codes, static_argnums=1)


def with_gaps(tokens):
    """Without the last tokens of each image: they are at no position."""
    h, w = tokens.grid
    return Tokens(tokens.codes, tokens.positions.at[:, -GAPS:].set(h * w), tokens.grid)


class Gappy(EfficientVQGAN):
    """A tokenizer that leaves some tokens out."""

    def encode(self, images):
        return with_gaps(super().encode(images))

    def features(self, images, train=False):
        features, tokens, loss, metrics = super().features(images, train)
        return features, with_gaps(tokens), loss, metrics


def gappy(model):
    fields = (f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name"))
    return Gappy(**{name: getattr(model, name) for name in fields})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a tokenizer with gaps that has not been trained."""
    workdir = tmp_path_factory.mktemp("run")
    write_config(tiny.get_config(), workdir)
    write_condition(workdir, tiny.CONDITION)
    run = Run(workdir, tiny.one_device())
    run.tokenizer = gappy(run.tokenizer)
    run.tokenizer_variables = large_parameters(run.tokenizer, random_images(16, 16))
    return run


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def tokens(run, images):
    encode = jax.jit(lambda v, x: run.tokenizer.apply(v, x, method="encode"))
    return encode(run.tokenizer_variables, images / np.float32(127.5) - 1)


@pytest.fixture(scope="module")
def expected(tokens):
    """Counts of the first two images."""
    codes = np.asarray(tokens.codes)[:2, :-GAPS].ravel()
    counts = np.bincount(codes, minlength=32)
    assert np.any(counts != np.bincount(np.asarray(tokens.codes)[:2].ravel(), minlength=32))
    return counts


VALID = np.array([True, True, False])


def test_validation_of_a_tokenizer(run, images, expected):
    stage = tiny.make_stage(run.config, "tokenizer", run.workdir)
    stage.model = run.tokenizer
    # Of the program that only counts: all the rest of the pass is left out.
    counts = jax.jit(lambda *args: stage._eval_step(*args)[0]["codes"])
    np.testing.assert_array_equal(
        counts(run.tokenizer_variables, {"reconstruction": {}}, images, VALID), expected
    )


def test_validation_of_a_prior(run, images, expected):
    stage = tiny.make_stage(run.config, "prior", run.workdir)
    stage.tokenizer = run.tokenizer
    batch = {"image": images, "condition": np.zeros((3, 1), np.int32), "valid": VALID}

    def counts(frozen, batch):
        variables = {"params": jax.jit(stage.init_variables)(jax.random.key(0))["params"]}
        return stage._eval_step(variables, frozen, batch, jax.random.key(0))[0]

    np.testing.assert_array_equal(jax.jit(counts)(run.tokenizer_variables, batch), expected)


def test_metrics_of_reconstructions(tokens, expected, tmp_path):
    rows = Rows(tmp_path, 2, dict.fromkeys(("codes", "positions"), ((16,), np.int32)))
    rows.append({name: np.asarray(getattr(tokens, name))[:2] for name in rows.columns})
    metrics = pair_metrics.summary(rows, 32, tokens.grid)[0].metrics
    assert metrics["codebook usage"] == np.count_nonzero(expected) / 32
    p = expected[expected > 0] / expected.sum()
    assert metrics["codebook perplexity"] == pytest.approx(np.exp(-np.sum(p * np.log(p))))


def test_the_codebook_of_the_page(run, images, expected):
    found = codebook.inspect(run, [{"image": images, "valid": VALID}])
    assert (found.tokens, found.used) == (expected.sum(), np.count_nonzero(expected))
    assert found.images == 2 and jnp.isfinite(found.perplexity)


def test_usage_and_perplexity_in_closed_form():
    for used in (1, 3, 8):
        counts = count_codes(np.resize(np.arange(used), (2, 120)), 8)
        np.testing.assert_array_equal(counts, [240 // used] * used + [0] * (8 - used))
        np.testing.assert_allclose(perplexity(counts), used, rtol=1e-5)
        np.testing.assert_allclose(usage(counts), used / 8)
    p = np.array([0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0], np.float32)
    np.testing.assert_allclose(perplexity(800 * p), 2**1.75, rtol=1e-5)
    assert usage(np.zeros(8, np.float32)) == 0


@pytest.mark.parametrize("shape", [(5,), (5, 6), (5, 2, 3)])
def test_only_the_codes_of_valid_rows_are_counted(shape):
    codes = np.random.default_rng(0).integers(0, 4, shape)
    valid = np.array([True, False, True, False, True])
    counted = count_codes(codes, 4, valid)
    np.testing.assert_array_equal(counted, np.bincount(codes[valid].ravel(), minlength=4))
    np.testing.assert_array_equal(count_codes(codes, 4, ~valid & valid), np.zeros(4))


def test_only_valid_codes_are_counted():
    codes = np.random.default_rng(0).integers(0, 4, (5, 6))
    valid = np.random.default_rng(1).random((5, 6)) < 0.5
    counted = count_codes(codes, 4, valid)
    np.testing.assert_array_equal(counted, np.bincount(codes[valid], minlength=4))
