"""Every prior of dense tokens, with a caption, a class, or nothing: its losses, and its sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captioned import Captioned

from vqjax.conditions import CaptionCondition, ClassCondition, NoCondition
from vqjax.priors import PRIORS, build_prior
from vqjax.priors.base import init_prior
from vqjax.random_keys import split_by_name
from vqjax.samplers import SAMPLERS
from vqjax.tokens import Tokens

GRID, CODES, IMAGES = (4, 4), 7, 2
CELLS = GRID[0] * GRID[1]
# What makes them small, beside width and depth.
FIELDS = {"multigrained": {"embed_dim": 4, "block_size": 2, "halo": 1}}
DENSE = sorted(name for name, cls in PRIORS.items() if cls.token_kind == "dense")
# What is told of two images; captions of several lengths.
CONDITIONS = {
    "none": NoCondition(),
    "class": ClassCondition(("cat", "dog")),
    "caption": CaptionCondition.of(Captioned((("a red heart",), ("red",))), length=20),
}


@pytest.mark.parametrize("told", CONDITIONS)
@pytest.mark.parametrize("name", DENSE)
def test_loss_held_out_and_sample(name, told):
    fields = {"dim": 8, "num_layers": 1, "num_heads": 2, **FIELDS.get(name, {})}
    # Captions with classifier-free guidance.
    guidance = {"guidance": 2.0} if told == "caption" else {}
    fields |= {"condition_dropout": 0.5} if guidance else {}
    num_ids = CONDITIONS[told].num_ids
    prior = build_prior("prior.model", {"name": name, **fields}, CODES, GRID, num_ids)
    sampler = SAMPLERS[name]
    rng = np.random.default_rng(0)
    codes = jax.device_put(rng.integers(0, CODES, (IMAGES, CELLS)).astype(np.int32))
    condition = jax.device_put(CONDITIONS[told].in_turn(IMAGES))
    # Of the cells of each image every second one.
    known = Tokens.dense(codes.reshape(IMAGES, *GRID))
    places = jnp.where(known.positions % 2 == 0, known.positions, CELLS)
    known = Tokens(codes, places, GRID)

    @jax.jit
    def run(key):
        tokens, keys = Tokens.dense(codes.reshape(IMAGES, *GRID)), split_by_name(key, prior.rngs)
        variables = init_prior(prior, CELLS, condition.shape[1], key)
        loss = prior.apply(variables, tokens, condition, True, method="loss", rngs=keys)
        call = variables, tokens, condition, jnp.array([True, False]), key
        held_out = prior.apply(*call, method="held_out")
        call = prior, variables, key, condition, known, sampler.settings(**guidance), GRID
        return loss, held_out, sampler.sample(*call)

    (loss, number, _), held_out, drawn = run(jax.random.key(0))
    assert number >= 1 and 0 < loss < 2 * np.log(CODES)
    for total, count in held_out.values():
        assert count > 0 and np.isfinite(total / count)
    assert drawn.grid == GRID and drawn.codes.shape == (IMAGES, CELLS)
    assert drawn.codes.min() >= 0 and drawn.codes.max() < CODES
    np.testing.assert_array_equal(drawn.codes[:, ::2], codes[:, ::2])
