"""The buffers of llama.cpp for a GGUF file, on a GPU and on the host."""
