"""Two-stage vector-quantized image generators in JAX and Flax Linen.

run = vqjax.load("runs/openmoji")
tokens = run.encode(images)
images = run.decode(tokens)
samples = run.sample(16, label="flags")
results = run.edit(image, mask)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqjax.generation.run import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Only who loads a run pays for importing all that samples from one.
    if name == "load":
        from vqjax.generation.run import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
