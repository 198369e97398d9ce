"""Decisions of GGUF models, from the process that runs llama.cpp."""
