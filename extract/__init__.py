"""Extraction: run teachers once and write their features to a store."""
