"""Two-stage vector-quantized image generators in JAX and Flax Linen."""
