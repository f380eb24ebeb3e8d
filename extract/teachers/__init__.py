"""Frozen image networks, which turn images into patch maps."""
