"""The routing of GGUF files in llama.cpp: the same as in transformers, and what quantization does to it."""
