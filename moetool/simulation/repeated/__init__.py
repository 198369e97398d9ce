"""Layers that do the same work, run once."""
