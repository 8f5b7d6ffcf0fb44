"""Codes that are hardly used, and codes that are used and would restart, are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vqjax.errors import InputError
from vqjax.training.state import Network, State


@pytest.mark.parametrize(
    ("quantizer", "advice"),
    [
        ({}, "a higher restart_below"),
        ({"restart_below": 0.0}, "restart_below=0.1 (the"),
        (
            {"learning": "gradient", "latent_norm": "none", "restart_below": 0.0},
            "learning=ema, latent_norm=layer, restart_below=0.1 (the",
        ),
    ],
)
def test_a_collapsed_codebook_is_told_with_what_to_change(quantizer, advice, caplog):
    """3 of 32 codes are too few, 4 are not; where few tokens were seen, it is their number."""
    config = tiny.get_config()
    config.tokenizer.model.quantizer.update(quantizer)
    stage = tiny.make_stage(config, "tokenizer", "")
    state = State(np.int32(6), Network({}, (), None, {}))

    def warned(counts):
        caplog.clear()
        sums = {"images": jnp.asarray(7.0), "codes": jnp.asarray([*counts, *[0.0] * 32])[:32]}
        images = np.zeros((1, 16, 16, 3), np.uint8)
        stage.eval_step = lambda *_: (dict(sums), jnp.asarray(images, jnp.float32))
        batch = {"image": images, "valid": np.ones(1, bool)}
        stage.evaluate(state, {}, [batch], jax.device_put)
        return caplog.messages

    (message,) = warned([100, 10, 2])
    assert "tokenizer: step 6" in message and "3 of 32 codes occur in 7 validation" in message
    assert f"config.tokenizer.model.quantizer: {advice}" in message
    assert not warned([100, 10, 1, 1])
    assert not warned([10])
    stage.trains_codes = False
    assert not warned([100])


def test_codes_that_restart_although_they_are_used_are_refused(tmp_path):
    """128 vectors of a batch for 32 codes, or 32 in each of four microbatches."""
    config = tiny.get_config()
    config.tokenizer.model.quantizer.restart_below = 1.0
    tiny.make_stage(config, "tokenizer", tmp_path)
    config.tokenizer.microbatches = 4
    message = r"tokenizer.model.quantizer.restart_below=1.0: .* occur 1 times .* fewer microbatches"
    with pytest.raises(InputError, match=message):
        tiny.make_stage(config, "tokenizer", tmp_path)
