"""Quantized models without data: the same tensors and allocations as on a GPU."""
