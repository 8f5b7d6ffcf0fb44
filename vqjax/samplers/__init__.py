"""How each prior is sampled: pure jitted functions."""
