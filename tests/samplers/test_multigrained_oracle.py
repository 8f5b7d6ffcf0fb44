"""The whole sampler against plain loops around a real prior, with and without guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tiny_prior import CLASSES, NULL, make, schedule, spec_of
from tiny_sampler import BATCH, blocks_of, cells_of, own_of, random_known, sample


def greedy_oracle(prior, variables, condition, known, mask, spec):
    """The most likely codes, the most confident first: plain loops around the model's forward."""
    codes = np.where(mask, known, spec.mask_id)
    batch, g = len(codes), len(blocks_of(spec))
    forward = jax.jit(prior.apply, static_argnums=5)
    block_tokens = functools.partial(prior.apply, variables, method="block_tokens")
    null = jnp.full_like(condition, NULL)
    for block in range(g):
        start = (codes[:, own_of(spec, block)] == spec.mask_id).sum(1)
        plan = [schedule(n, spec.steps) for n in start]
        for step in range(spec.steps):
            window = np.full((batch, (spec.block_size + 2 * spec.halo) ** 2), spec.mask_id)
            for slot, cell in enumerate(cells_of(spec, block, spec.halo)):
                if cell is not None:
                    window[:, slot] = codes[:, cell]
            glob = np.full((batch, g, spec.block_size**2), spec.mask_id)
            for other in range(g):
                for b in range(batch):
                    if (codes[b, own_of(spec, other)] != spec.mask_id).all():
                        for slot, cell in enumerate(cells_of(spec, other)):
                            if cell is not None:
                                glob[b, other, slot] = codes[b, cell]
            inputs = (
                jnp.asarray(window, jnp.int32),
                jnp.full((batch,), block, jnp.int32),
                block_tokens(jnp.asarray(glob, jnp.int32)),
            )
            given, without = (
                np.asarray(forward(variables, *inputs, c, spec.grid), np.float64)
                for c in (condition, null)
            )
            weight = spec.guidance
            if spec.guidance_schedule == "linear":
                weight = 1 + (weight - 1) * (block * spec.steps + step) / (g * spec.steps - 1)
            guided = without + weight * (given - without)
            log_p = scipy.special.log_softmax(guided, axis=-1)
            for b in range(batch):
                open_cells = [
                    (log_p[b, slot].max(), cell, log_p[b, slot].argmax())
                    for slot, cell in enumerate(cells_of(spec, block))
                    if cell is not None and codes[b, cell] == spec.mask_id
                ]
                open_cells.sort(reverse=True)
                for _, cell, code in open_cells[: plan[b][step] - plan[b][step + 1]]:
                    codes[b, cell] = code
    return codes


@pytest.mark.parametrize(
    "guidance",
    [{}, {"guidance": 2.5}, {"guidance": 0.4}, {"guidance": 3.0, "guidance_schedule": "linear"}],
    ids=lambda x: "-".join(str(v) for v in x.values()) or "none",
)
def test_the_whole_sampler_equals_plain_loops_where_nothing_is_random(guidance):
    prior, variables = make(num_ids=CLASSES)
    spec = spec_of(steps=3, top_k=1, choice_temperature=0.0, **guidance)
    known, mask = random_known(spec, seed=3)
    mask[0] = False
    condition = jnp.arange(BATCH, dtype=jnp.int32)[:, None]
    codes = sample(prior, variables, known, mask, spec, condition=condition)
    expected = greedy_oracle(prior, variables, condition, known, mask, spec)
    np.testing.assert_array_equal(codes, expected)
    assert len(np.unique(codes[0])) > 2
