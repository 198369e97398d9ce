"""GGUF, llama.cpp's format: headers of whole and split files, checked; never weights."""
