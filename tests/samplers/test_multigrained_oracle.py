"""The whole sampler against plain loops around a real prior, with and without guidance."""

import functools

import jax
import numpy as np
import pytest
import scipy.special
from tiny_prior import CLASSES, NULL, make, schedule, spec_of
from tiny_sampler import (
    BATCH,
    blocks_of,
    cells_of,
    own_of,
    random_known,
    sample,
    window_cells_of,
    window_length,
)


@functools.partial(jax.jit, static_argnames=("prior", "grid"))
def logits_of(prior, variables, window, query, block_codes, condition, grid):
    """The model's logits, of the codes of all blocks."""
    block_tokens = prior.apply(variables, block_codes, method="block_tokens")
    return prior.apply(variables, window, query, block_tokens, condition, grid)


def greedy_oracle(prior, variables, condition, known, mask, spec):
    """The most likely codes, the most confident first: plain loops around the model's forward."""
    codes = np.where(mask, known, spec.mask_id)
    batch, g = len(codes), len(blocks_of(spec))
    null = np.full_like(condition, NULL)
    for block in range(g):
        start = (codes[:, own_of(spec, block)] == spec.mask_id).sum(1)
        plan = [schedule(n, spec.steps) for n in start]
        for step in range(spec.steps):
            window = np.full((batch, window_length(spec)), spec.mask_id)
            for slot, cell in enumerate(window_cells_of(spec, block)):
                if cell is not None:
                    window[:, slot] = codes[:, cell]
            glob = np.full((batch, g, spec.block_size**2), spec.mask_id)
            for other in range(g):
                for b in range(batch):
                    if (codes[b, own_of(spec, other)] != spec.mask_id).all():
                        for slot, cell in enumerate(cells_of(spec, other)):
                            if cell is not None:
                                glob[b, other, slot] = codes[b, cell]
            inputs = window, np.full(batch, block), glob
            given, without = (
                np.asarray(logits_of(prior, variables, *inputs, c, spec.grid), np.float64)
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


@functools.cache
def inputs():
    """A model, conditions and known tokens of which the first image has none."""
    prior, variables = make(num_ids=CLASSES)
    known, mask = random_known(spec_of(), seed=3)
    mask[0] = False
    return prior, variables, np.arange(BATCH, dtype=np.int32)[:, None], known, mask


def greedy(condition, **settings):
    """The sampler where nothing is random."""
    prior, variables, _, known, mask = inputs()
    spec = spec_of(steps=3, top_k=1, choice_temperature=0.0, **settings)
    return spec, sample(prior, variables, known, mask, spec, condition=condition)


@pytest.mark.parametrize("guidance", [{}, {"guidance": 3.0, "guidance_schedule": "linear"}])
def test_the_whole_sampler_equals_plain_loops_where_nothing_is_random(guidance):
    prior, variables, condition, known, mask = inputs()
    spec, codes = greedy(condition, **guidance)
    expected = greedy_oracle(prior, variables, condition, known, mask, spec)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(codes[mask], known[mask])
    assert len(np.unique(codes[0])) > 2


def test_guidance_of_zero_samples_without_the_condition():
    _, _, condition, _, _ = inputs()
    _, unguided = greedy(condition, guidance=0.0)
    np.testing.assert_array_equal(unguided, greedy(np.full_like(condition, NULL))[1])
    assert (unguided != greedy(condition)[1]).any()
