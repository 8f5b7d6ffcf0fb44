"""What a training step in bfloat16 leaves in float32: sums over many terms, and all gradients."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.extend.core import Literal
from ml_collections import ConfigDict
from traced import all_equations, inner_programs

from vqjax.training import prior_stage, tokenizer_stage

BFLOAT16 = jnp.dtype("bfloat16")
SUMS = ("reduce_sum", "scatter-add", "cumsum", "reduce_window_sum")
# Operations that make a number of each number of an argument: what comes out is no better than what
# goes in.
ELEMENTWISE = {
    *("add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "div"),
    *("dynamic_slice", "dynamic_update_slice", "expand_dims", "mul", "neg", "pad", "reshape"),
    *("rev", "select_n", "slice", "squeeze", "sub", "transpose"),
}


def config_of(tokenizer):
    config = tiny.get_config()
    if tokenizer in ("vqgan", "seqgan"):
        fields = {"width": 8, "multipliers": (1, 2, 2), "num_res_blocks": 1, "dtype": "bfloat16"}
        fields |= {
            "vqgan": {"latent_width": 8, "attention_factors": (4,)},
            "seqgan": {"enhancement": "attention", "regions": (4, 4, 2), "head_dim": 8},
        }[tokenizer]
        fields |= {"name": tokenizer, "quantizer": {"code_dim": 8}}
        config.tokenizer.model = ConfigDict(fields)
    else:
        config.tokenizer.model.dtype = "bfloat16"
        # Learned by gradient, as every other parameter.
        config.tokenizer.model.quantizer.learning = "gradient"
        config.tokenizer.model.quantizer.restart_below = 0.0
    config.tokenizer.discriminator.model.dtype = config.prior.model.dtype = "bfloat16"
    # More query blocks than are let pass as a few terms of a sum.
    config.prior.model.query_blocks_per_image, config.prior.model.block_size = 16, 1
    return config


def traced_step(stage, module):
    """A training step as a program whose outputs are the parameters' gradients; their paths."""
    state = jax.eval_shape(stage.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.uint8),
        "condition": jax.ShapeDtypeStruct((8, 1), jnp.int32),
    }

    def gradients(state, frozen, batch):
        seen = []

        def spy(*args, accumulate=module.accumulate):
            seen.append(accumulate(*args))
            return seen[0]

        with mock.patch.object(module, "accumulate", spy):
            stage.train_step(state, frozen, batch, stage.training_key)
        return seen[0][0]

    program, shapes = jax.make_jaxpr(gradients, return_shape=True)(
        state, stage.frozen_shapes(), batch
    )
    return program.jaxpr, [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shapes)
    ]


def sums_in_bfloat16(program):
    """Operations that add up many numbers in bfloat16; those inside of products add in float32."""
    for equation in all_equations(program):
        if equation.primitive.name not in SUMS:
            continue
        argument, result = equation.invars[0].aval, equation.outvars[0].aval
        # Of four numbers, as where a map is enlarged twofold, a sum is as good as any other result.
        few = equation.primitive.name == "reduce_sum" and argument.size <= 4 * result.size
        if result.dtype == BFLOAT16 and not few:
            yield f"{equation.primitive.name} of {argument} to {result}"


def has_been_bfloat16(program, variable, outside=(), seen=None):
    """Whether numbers were bfloat16 between the product or sum that made them and here."""
    seen = set() if seen is None else seen
    if isinstance(variable, Literal) or variable in seen:
        return False
    seen.add(variable)
    if variable.aval.dtype == BFLOAT16:
        return True
    if variable in program.invars:
        if not outside:
            return False
        (outer, arguments), *further = outside
        return has_been_bfloat16(outer, arguments[program.invars.index(variable)], further, seen)
    made_by = [e for e in program.eqns if variable in e.outvars]
    if not made_by:
        return False
    (equation,) = made_by
    inner = list(inner_programs(equation))
    if inner:
        place = equation.outvars.index(variable)
        # The first argument of a choice is which.
        arguments = equation.invars[1:] if equation.primitive.name == "cond" else equation.invars
        return any(
            has_been_bfloat16(body, body.outvars[place], ((program, arguments), *outside), seen)
            for body in inner
        )
    return equation.primitive.name in ELEMENTWISE and any(
        has_been_bfloat16(program, argument, outside, seen) for argument in equation.invars
    )


@pytest.mark.parametrize(
    ("name", "tokenizer", "module"),
    [
        ("tokenizer", "efficient_vqgan", tokenizer_stage),
        ("tokenizer", "vqgan", tokenizer_stage),
        ("tokenizer", "seqgan", tokenizer_stage),
        ("prior", "efficient_vqgan", prior_stage),
    ],
)
def test_gradients_are_float32_from_where_they_are_made(name, tokenizer, module, tmp_path):
    stage = tiny.make_stage(config_of(tokenizer), name, tmp_path)
    program, paths = traced_step(stage, module)
    rounded = [
        path
        for path, variable in zip(paths, program.outvars, strict=True)
        if has_been_bfloat16(program, variable)
    ]
    assert len(paths) > 10 and not rounded
    assert not list(sums_in_bfloat16(program))
    # It does compute in bfloat16.
    kinds = ("conv_general_dilated", "dot_general")
    products = [e for e in all_equations(program) if e.primitive.name in kinds]
    assert sum(e.invars[0].aval.dtype == BFLOAT16 for e in products) > len(products) / 2
