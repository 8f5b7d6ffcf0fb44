"""A run's folder and what is built from it: config, stages, models, weights, checkpoints, record."""
