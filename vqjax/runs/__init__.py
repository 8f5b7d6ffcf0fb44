"""The folder of a run and what is built from it: config, models, weights, checkpoints."""
