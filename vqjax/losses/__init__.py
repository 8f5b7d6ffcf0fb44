"""Losses: pure functions of arrays, in float32."""
