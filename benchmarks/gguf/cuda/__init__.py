"""Measurements of llama.cpp on GPUs with CUDA."""
