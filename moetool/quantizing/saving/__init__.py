"""Checkpoints quantized file by file, without the whole model in memory."""
