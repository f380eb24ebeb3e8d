"""Frozen vision transformers: images in, patch maps out."""
