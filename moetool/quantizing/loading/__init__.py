"""Weights quantized while they are read."""
