"""Evaluation: metrics of sets and pairs of images, references, tables of features, results."""
