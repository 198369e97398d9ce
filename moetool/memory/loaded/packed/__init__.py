"""Weights that stay packed on a GPU: transformers' modules for them, without data and without kernels."""
