"""GGUF files of llama.cpp's own converter, and its reports on them."""
