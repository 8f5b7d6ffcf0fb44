"""Frozen networks that losses and metrics look through, and where their weights come from."""
