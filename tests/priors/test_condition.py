"""The condition of a prior: null, padding, dropout, embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from vqjax.priors.condition import ConditionEmbedding, drop_condition, null_condition

IDS = 5
NULL, PADDING = IDS, IDS + 1


def test_the_null_condition_is_the_null_id_and_then_padding():
    condition = jnp.asarray([[1, 2, 3], [4, 0, PADDING]], jnp.int32)
    expected = [[NULL, PADDING, PADDING]] * 2
    np.testing.assert_array_equal(null_condition(condition, IDS), expected)
    assert null_condition(condition[:, :0], IDS).shape == (2, 0)


def test_whole_conditions_are_dropped_at_the_rate():
    condition = jnp.tile(jnp.arange(3, dtype=jnp.int32), (2000, 1))
    dropped = drop_condition(jax.random.key(0), condition, IDS, 0.2)
    null = (np.asarray(dropped) == [NULL, PADDING, PADDING]).all(1)
    kept = (np.asarray(dropped) == [0, 1, 2]).all(1)
    assert (null ^ kept).all()
    assert scipy.stats.binomtest(int(null.sum()), 2000, 0.2).pvalue > 0.01


def test_every_id_but_padding_has_a_row_that_is_seen():
    module = ConditionEmbedding(IDS, 4)
    condition = jnp.asarray([[0, NULL, PADDING]], jnp.int32)
    variables = module.init(jax.random.key(0), condition)
    embedded, visible = module.apply(variables, condition)
    table = variables["params"]["ids"]["embedding"]
    assert table.shape == (IDS + 2, 4)
    np.testing.assert_array_equal(embedded[0], table[jnp.asarray([0, NULL, PADDING])])
    np.testing.assert_array_equal(visible, [[True, True, False]])
