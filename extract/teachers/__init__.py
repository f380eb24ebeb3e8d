"""Frozen image networks: images in, patch maps out."""
