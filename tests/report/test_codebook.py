"""The codebook: counted over a split, and laid out."""

import jax
import numpy as np
import pytest
import tiny

from vqjax.data import build_source, evaluation_batches
from vqjax.generation.run import Run
from vqjax.report import codebook


def test_the_codebook_is_counted_over_valid_images():
    run = Run(tiny.finished_run().workdir, tiny.one_device())
    data = tiny.finished_run().config.data
    source = build_source(data.source, "validation", 16)
    batches = evaluation_batches(source, tiny.CONDITION, tiny.DATA, batch_size=4)
    found = codebook.inspect(run, batches)
    images = np.stack([source[i]["image"] for i in range(7)]) / np.float32(127.5) - 1
    _, tokens, *_ = jax.jit(run.tokenizer.apply)(run.tokenizer_variables, images)
    _, counts = np.unique(np.asarray(tokens.codes), return_counts=True)
    p = counts / counts.sum()
    assert (found.images, found.tokens, found.used) == (7, 7 * 16, len(counts))
    assert found.perplexity == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-5)


def test_principal_components():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 5
    points, shares = codebook.principal_components(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    for i in range(2):
        expected = (vectors - vectors.mean(0)) @ directions[:, -1 - i]
        np.testing.assert_allclose(np.abs(points[:, i]), np.abs(expected), atol=1e-9)
    # Another start of the same directions gives the same picture.
    np.testing.assert_allclose(codebook.principal_components(vectors[::-1])[0][::-1], points)
    # One number a code: there is but one component.
    assert codebook.principal_components(vectors[:, :1])[1].tolist() == [1.0, 0.0]
    # Codes that are all alike are at one point.
    for same in (vectors[:1], np.repeat(vectors[:1], 4, axis=0).round()):
        points, shares = codebook.principal_components(same)
        assert not points.any() and not shares.any()
