"""Losses, in float32: pure functions of arrays, and LPIPS."""
