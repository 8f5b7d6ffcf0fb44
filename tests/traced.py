"""Looks into traced programs."""

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner_programs(equation):
    """The programs inside of an operation: of a loop, a call, a choice."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else [value]:
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def all_equations(program):
    """The operations of a program and of those inside of them."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from all_equations(inner)


def products(program):
    """Its matrix products and convolutions."""
    names = ("conv_general_dilated", "dot_general")
    return [found for found in all_equations(program) if found.primitive.name in names]
