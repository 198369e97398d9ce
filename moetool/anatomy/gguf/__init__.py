"""The parameter table of a GGUF file, by llama.cpp's names of tensors, without torch."""
