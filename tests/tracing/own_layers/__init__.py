"""Layers as people write them, each with a plain computation of its routing."""
