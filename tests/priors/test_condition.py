"""The condition of a prior: null, padding, dropout, embedding."""

import jax
import numpy as np
import scipy.stats

from vqjax.priors.condition import ConditionEmbedding, drop_condition, null_condition

IDS = 5
NULL, PADDING = IDS, IDS + 1


def test_the_null_condition_is_the_null_id_and_then_padding():
    condition = np.array([[1, 2, 3], [4, 0, PADDING]], np.int32)
    null = jax.jit(null_condition, static_argnums=1)
    np.testing.assert_array_equal(null(condition, IDS), [[NULL, PADDING, PADDING]] * 2)
    assert jax.eval_shape(lambda c: null(c, IDS), condition[:, :0]).shape == (2, 0)


def test_whole_conditions_are_dropped_at_the_rate():
    condition = np.tile(np.arange(3, dtype=np.int32), (2000, 1))
    drop = jax.jit(drop_condition, static_argnums=(2, 3))
    dropped = drop(jax.random.key(0), condition, IDS, 0.2)
    null = (np.asarray(dropped) == [NULL, PADDING, PADDING]).all(1)
    kept = (np.asarray(dropped) == [0, 1, 2]).all(1)
    assert (null ^ kept).all()
    assert scipy.stats.binomtest(int(null.sum()), 2000, 0.2).pvalue > 0.01


def test_every_id_but_padding_has_a_row_that_is_seen():
    module = ConditionEmbedding(IDS, 4)
    condition = np.array([[0], [NULL], [PADDING]], np.int32)
    run = jax.jit(lambda key, ids: module.init_with_output(key, ids))
    (embedded, visible), variables = run(jax.random.key(0), condition)
    table = np.asarray(variables["params"]["ids"]["embedding"])
    assert table.shape == (IDS + 2, 4)
    np.testing.assert_array_equal(embedded, table[condition])
    np.testing.assert_array_equal(visible, [[True], [True], [False]])


def test_longer_conditions_have_positions_and_a_single_id_has_none():
    condition = np.array([[3, NULL, PADDING], [3, 3, 3]], np.int32)
    run = jax.jit(
        lambda module, ids: module.init_with_output(jax.random.key(0), ids), static_argnums=0
    )
    (embedded, _), variables = run(ConditionEmbedding(IDS, 4), condition)
    table, position = (variables["params"][name] for name in ("ids", "position"))
    assert position.shape == (3, 4) and np.unique(position, axis=0).shape == (3, 4)
    expected = np.float64(table["embedding"])[condition] + np.float64(position)
    np.testing.assert_allclose(embedded, expected, rtol=1e-6)
    _, of_a_class = run(ConditionEmbedding(IDS, 4), condition[:, :1])
    assert list(of_a_class["params"]) == ["ids"]
