"""Routing of GGUF files, recorded while llama.cpp runs them in another process."""
