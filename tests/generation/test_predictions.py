"""The likeliest code of each cell, given the true ones before it."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dense
from tiny_dense import CELLS, CODES, condition_of, forward, nats_of, random_codes, tokens_of

from vqjax.generation.predictions import predict_codes


@pytest.mark.parametrize("num_ids", [0, tiny_dense.CLASSES + 2])
def test_codes_are_the_likeliest_and_nats_those_of_the_true_ones(num_ids):
    prior, variables = tiny_dense.make("autoregressive", num_ids=num_ids)
    codes, condition = random_codes(), condition_of(prior)
    likeliest, nats = predict_codes(prior, variables, tokens_of(codes), condition)
    # Of each cell, whatever follows, its own code included.
    for cell in range(CELLS):
        other = codes.copy()
        other[:, cell:] = (other[:, cell:] + 1 + cell) % CODES
        logits = forward(prior, variables, jnp.asarray(other), condition)
        np.testing.assert_array_equal(likeliest[:, cell], logits[:, cell].argmax(-1))
        own = nats_of(logits, codes)[:, cell]
        np.testing.assert_allclose(nats[:, cell], own, rtol=1e-4, atol=1e-5)
    assert (np.asarray(likeliest) != codes).any()
