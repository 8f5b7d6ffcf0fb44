"""Padding of a condition is nothing to any prior: not seen, not learned, however much there is."""

import functools

import jax
import numpy as np
import pytest
import tiny_dense
import tiny_prior
from condition_positions import with_positions

from vqjax.tokens import Tokens

CLASSES = 4
NULL, PADDING = CLASSES, CLASSES + 1
LENGTH, LONGER = 4, 7
# Of several lengths, the null condition among them.
CAPTIONS = [[2, 1, 3], [NULL], [0, 0, 1, 2], [3, 2], [2, 3]]


@functools.cache
def made(name):
    """A prior, its variables for the longer conditions, and tokens of an image for each caption."""
    if name == "multigrained":
        prior, variables = tiny_prior.make(num_ids=CLASSES, num_layers=1, query_blocks_per_image=1)
        codes = tiny_prior.random_codes()[: len(CAPTIONS)]
    else:
        prior, variables = tiny_dense.make(name, num_ids=CLASSES, num_layers=1)
        codes = tiny_dense.random_codes().reshape(-1, *tiny_dense.GRID)
    return prior, with_positions(variables, LONGER), Tokens.dense(jax.device_put(codes))


@functools.cache
def loss_and_gradient(name, length):
    """The loss of `CAPTIONS` by variables and condition, and its gradient."""
    prior, _, tokens = made(name)

    def loss(variables, condition):
        rngs = {stream: jax.random.key(1) for stream in prior.rngs}
        return prior.apply(variables, tokens, condition, False, method="loss", rngs=rngs)[0]

    return jax.jit(jax.value_and_grad(loss))


def found(name, captions=CAPTIONS, length=LENGTH):
    _, variables, _ = made(name)
    condition = np.full((len(captions), length), PADDING, np.int32)
    for row, ids in enumerate(captions):
        condition[row, : len(ids)] = ids
    embedding = variables["params"]["condition_embedding"]
    embedding = {**embedding, "position": embedding["position"][:length]}
    variables = {"params": {**variables["params"], "condition_embedding": embedding}}
    loss, gradient = loss_and_gradient(name, length)(variables, condition)
    return float(loss), jax.tree.map(np.asarray, gradient["params"])


@pytest.mark.parametrize("name", ["autoregressive", "masked", "multigrained"])
def test_padding_is_neither_seen_nor_learned(name):
    loss, gradient = found(name)
    table, position = (
        np.abs(leaf).max(-1)
        for leaf in jax.tree.leaves(
            [gradient["condition_embedding"][key] for key in ("ids", "position")]
        )
    )
    # Every id counts, the null id too, at every place: but not padding.
    assert (table[:PADDING] > 1e-6).all() and table[PADDING] == 0
    assert (position > 1e-6).all()

    more, with_more = found(name, length=LONGER)
    np.testing.assert_allclose(more, loss, rtol=1e-5)
    assert (with_more["condition_embedding"]["position"][LENGTH:] == 0).all()
    assert (np.abs(with_more["condition_embedding"]["position"][:LENGTH]).max(-1) > 1e-6).all()


@pytest.mark.parametrize("name", ["autoregressive", "masked", "multigrained"])
def test_the_order_of_the_ids_is_seen(name):
    turned = [ids[::-1] for ids in CAPTIONS]
    assert abs(found(name, turned)[0] - found(name)[0]) > 1e-4
