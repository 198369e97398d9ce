"""Modules that hold quantized weights, which are quantized while they are read."""
