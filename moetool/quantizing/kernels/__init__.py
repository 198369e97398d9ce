"""Triton kernels for packed experts."""
