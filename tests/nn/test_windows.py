"""Swin blocks against float64 oracles that work in the map's own coordinates, without rolling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vqjax.nn.windows import (
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    SwinStage,
    fit_window,
    merge_windows,
    partition_windows,
    relative_position_index,
    shifted_window_mask,
)

HEADS, DIM = 2, 4


def randomized(variables, seed=0):
    """Parameters large enough that none of them hides behind its initial value."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape), p.dtype), variables)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def window_of(position, size, window, shifted):
    """The window of a cell along one axis: window borders lie at half a window if shifted."""
    if size <= window:
        return 0
    return (position - (window // 2 if shifted else 0)) // window


def visible(query, key, grid, window, shifted):
    return all(
        window_of(q, size, window, shifted) == window_of(k, size, window, shifted)
        for q, k, size in zip(query, key, grid, strict=True)
    )


def swin_oracle(x, params, window, shifted):
    """A Swin block on one map (h, w, c), one query cell at a time."""
    h, w, _ = x.shape
    cells = list(np.ndindex(h, w))
    qkv = np.einsum(
        "hwd,dtne->thwne",
        layer_norm(x, params["norm_attention"]),
        params["attention"]["qkv"]["kernel"],
    )
    qkv += params["attention"]["qkv"]["bias"][:, None, None]
    attended = np.zeros(qkv.shape[1:])
    for cell in cells:
        keys = [k for k in cells if visible(cell, k, (h, w), window, shifted)]
        rows, columns = np.array(keys).T
        table_row = (
            (cell[0] - rows + window - 1) * (2 * window - 1) + cell[1] - columns + window - 1
        )
        for head in range(HEADS):
            logits = qkv[1, rows, columns, head] @ qkv[0][cell][head]
            logits = logits / np.sqrt(DIM // HEADS) + params["relative_bias"][table_row, head]
            attended[cell][head] = scipy.special.softmax(logits) @ qkv[2, rows, columns, head]
    out = params["attention"]["out"]
    x = x + np.einsum("hwne,ned->hwd", attended, out["kernel"]) + out["bias"]
    up, down = params["mlp"]["up"], params["mlp"]["down"]
    hidden = gelu(layer_norm(x, params["norm_mlp"]) @ up["kernel"] + up["bias"])
    return x + hidden @ down["kernel"] + down["bias"]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("grid", "window"), [((8, 12), 4), ((12, 3), 4), ((6, 9), 3), ((3, 2), 4)])
def test_block_equals_the_oracle(grid, window, shifted):
    block = SwinBlock(HEADS, window, shifted, mlp_ratio=2)
    x = np.random.default_rng(1).normal(size=(2, *grid, DIM))
    images = jnp.asarray(x, jnp.float32)
    variables = randomized(jax.eval_shape(block.init, jax.random.key(0), images))
    out = jax.jit(block.apply)(variables, images)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    for image, result in zip(x, out, strict=True):
        np.testing.assert_allclose(
            result, swin_oracle(image, params, window, shifted), rtol=2e-4, atol=2e-4
        )


def random_map(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def gradient_of_cell(model, grid):
    """The gradient of any one cell of the output, compiled once."""
    x = random_map(1, *grid, DIM)
    variables = randomized(jax.eval_shape(model.init, jax.random.key(0), x))

    @jax.jit
    def gradient(row, column):
        return jax.grad(lambda x: jnp.sum(model.apply(variables, x)[0, row, column] ** 2))(x)

    return gradient


def influence(model, grid, cell):
    """Whether each cell of the input has a gradient at one cell of the output."""
    return np.any(gradient_of_cell(model, grid)(*cell)[0] != 0, axis=-1)


@pytest.mark.parametrize("cell", [(0, 0), (7, 0), (0, 11), (5, 7), (7, 11)])
def test_shifted_windows_do_not_see_each_other_around_the_edge(cell):
    grid, window = (8, 12), 4
    seen = influence(SwinBlock(HEADS, window, shifted=True), grid, cell)
    rows, columns = np.nonzero(seen)
    assert np.all(np.abs(rows - cell[0]) < window) and np.all(np.abs(columns - cell[1]) < window)
    expected = [[visible(cell, (r, c), grid, window, True) for c in range(12)] for r in range(8)]
    np.testing.assert_array_equal(seen, expected)


def test_every_other_block_of_a_stage_is_shifted():
    # The second block's window at (1, 1) is cells 0-1, whose windows in the first block are cells
    # 0-3; the one at (2, 2) is cells 2-5, which come from cells 0-7.
    stage = SwinStage(2, HEADS, 4)
    within = np.kron([[1, 0], [0, 0]], np.ones((4, 4)))
    np.testing.assert_array_equal(influence(stage, (8, 8), (1, 1)), within)
    assert np.all(influence(stage, (8, 8), (2, 2)))


def test_an_axis_no_larger_than_the_window_is_one_window_and_does_not_shift():
    assert np.all(influence(SwinBlock(HEADS, 4, shifted=True), (4, 3), (0, 0)))
    seen = influence(SwinBlock(HEADS, 4, shifted=True), (4, 8), (0, 0))
    np.testing.assert_array_equal(seen, np.tile(np.arange(8) < 2, (4, 1)))


def test_a_map_that_the_window_does_not_divide_is_refused():
    assert [fit_window(size, 4) for size in (1, 3, 4, 8, 12)] == [1, 3, 4, 4, 4]
    with pytest.raises(ValueError, match=r"6 cells .* windows of 4"):
        fit_window(6, 4)
    with pytest.raises(ValueError, match=r"6 cells .* windows of 4"):
        jax.eval_shape(
            SwinBlock(HEADS, 4, shifted=False).init, jax.random.key(0), jnp.ones((1, 8, 6, DIM))
        )


def test_relative_bias_depends_on_the_offset_alone():
    window, table = (3, 4), 5
    index = relative_position_index(window, table)
    assert index.shape == (12, 12)
    cells = list(np.ndindex(*window))
    for q, query in enumerate(cells):
        for k, key in enumerate(cells):
            row, column = query[0] - key[0] + table - 1, query[1] - key[1] + table - 1
            assert index[q, k] == row * (2 * table - 1) + column
    assert len(np.unique(index)) == (2 * 3 - 1) * (2 * 4 - 1)


def test_a_smaller_window_uses_the_middle_of_the_table():
    table = np.arange(9 * 9).reshape(9, 9)
    rows = np.unique(relative_position_index((3, 2), 5))
    np.testing.assert_array_equal(np.sort(table[2:7, 3:6].ravel()), rows)
    assert np.all(np.diag(relative_position_index((3, 2), 5)) == table[4, 4])
    # The same offset has the same row in windows of every size.
    large = relative_position_index((5, 5), 5).reshape(5, 5, 5, 5)
    small = relative_position_index((3, 2), 5).reshape(3, 2, 3, 2)
    np.testing.assert_array_equal(small, large[:3, :2, :3, :2])


def test_relative_bias_starts_as_swin_does():
    block = SwinBlock(HEADS, 8, shifted=False)
    images = jnp.ones((1, 8, 8, DIM))
    # Jitted, so that nothing else is computed.
    bias = jax.jit(lambda key: block.init(key, images)["params"]["relative_bias"])(
        jax.random.key(0)
    )
    assert bias.shape == (15 * 15, HEADS)
    assert 0.015 < np.std(bias) < 0.025
    assert np.abs(bias).max() < 0.05


def test_windows_partition_and_merge():
    x = jnp.arange(2 * 6 * 8 * 3, dtype=jnp.float32).reshape(2, 6, 8, 3)
    windows = partition_windows(x, (3, 4))
    assert windows.shape == (2, 4, 12, 3)
    np.testing.assert_array_equal(windows[1, 1], x[1, :3, 4:].reshape(12, 3))
    np.testing.assert_array_equal(windows[1, 2], x[1, 3:, :4].reshape(12, 3))
    np.testing.assert_array_equal(merge_windows(windows, (6, 8), (3, 4)), x)


def test_mask_of_windows_inside_the_map_is_full():
    mask = shifted_window_mask((12, 8), (4, 4), (2, 2)).reshape(3, 2, 16, 16)
    assert np.all(mask[:2, 0])
    # One axis wraps: two halves. Both do: four quarters.
    assert mask[2, 0].sum() == mask[0, 1].sum() == 16 * 16 / 2
    assert mask[2, 1].sum() == 16 * 16 / 4


def test_merging_equals_the_oracle():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    merging = PatchMerging(5)
    variables = randomized(jax.eval_shape(merging.init, jax.random.key(0), jnp.asarray(x)))
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    assert set(params["linear"]) == {"kernel"} and params["linear"]["kernel"].shape == (12, 5)
    out = jax.jit(merging.apply)(variables, jnp.asarray(x, jnp.float32))
    assert out.shape == (2, 2, 3, 5)
    for r, c in np.ndindex(2, 3):
        patch = [x[:, 2 * r + i, 2 * c + j] for i, j in np.ndindex(2, 2)]
        expected = layer_norm(np.concatenate(patch, -1), params["norm"])
        np.testing.assert_allclose(
            out[:, r, c], expected @ params["linear"]["kernel"], rtol=1e-4, atol=1e-4
        )


def test_expanding_equals_the_oracle():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 6))
    expanding = PatchExpanding(3)
    variables = randomized(jax.eval_shape(expanding.init, jax.random.key(0), jnp.asarray(x)))
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    # Half the width: Linear(C -> 2C), as in Swin-Unet.
    assert set(params["linear"]) == {"kernel"} and params["linear"]["kernel"].shape == (6, 12)
    out = jax.jit(expanding.apply)(variables, jnp.asarray(x, jnp.float32))
    assert out.shape == (2, 4, 6, 3)
    for r, c in np.ndindex(4, 6):
        quarter = 3 * (2 * (r % 2) + c % 2)
        kernel = params["linear"]["kernel"][:, quarter : quarter + 3]
        expected = layer_norm(x[:, r // 2, c // 2] @ kernel, params["norm"])
        np.testing.assert_allclose(out[:, r, c], expected, rtol=1e-3, atol=1e-3)


def test_rematerialised_stage_has_the_same_values_and_gradients():
    x = random_map(1, 8, 4, DIM)
    plain, remat = SwinStage(1, HEADS, 4, 1), SwinStage(1, HEADS, 4, 1, remat=True)
    variables = randomized(jax.eval_shape(plain.init, jax.random.key(0), x))

    def loss(model):
        step = jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(model.apply(v, x)))))
        return step.trace(variables)

    again = loss(remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        loss(plain).lower().compile()(variables),
        again.lower().compile()(variables),
    )
    assert "remat" in str(again.jaxpr)


def test_bfloat16_keeps_parameters_and_the_residual_stream_type():
    x = jnp.ones((1, 8, 8, DIM), jnp.bfloat16)
    block = SwinBlock(HEADS, 4, shifted=True, dtype="bfloat16")
    out, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
