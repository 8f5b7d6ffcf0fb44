"""Frozen networks of losses and metrics, and the readers of their weights."""
