"""Buffers of llama.cpp for GGUF files."""
