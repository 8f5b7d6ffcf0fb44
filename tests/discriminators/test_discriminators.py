"""All discriminators: frozen parameters, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from discriminator_oracles import build

from vqjax.discriminators import DISCRIMINATORS, build_discriminator
from vqjax.errors import InputError


def test_shapes_of_frozen_parameters_are_those_of_init():
    for name in DISCRIMINATORS:
        model = build({"name": name})
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(
            lambda key, x, model=model: model.init(key, x, train=False), jax.random.key(0), images
        )
        expected = {part: variables["params"][part] for part in model.frozen}
        values = model.frozen_params(jax.random.key(0))
        assert jax.tree.map(jnp.shape, values) == jax.tree.map(jnp.shape, expected)
        assert len(variables["params"]) > len(values)


def test_unknown_names_and_fields_are_refused():
    with pytest.raises(
        InputError, match=r"discriminator\.model\.name='patch'.*patchgan, projected"
    ):
        build({"name": "patch"})
    with pytest.raises(InputError, match=r"^config\.fine\.model\.width=0: at least 1 is needed"):
        build_discriminator("fine.model", {"name": "patchgan", "width": 0})
    with pytest.raises(InputError, match=r"model\.widht.*did you mean 'width'"):
        build({"name": "patchgan", "widht": 3})
