"""Metrics of sets and of pairs of images: arrays in, numbers out."""
