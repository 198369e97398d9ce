"""Headers of GGUF files, converted by llama.cpp, published, or written for families and mixtures of types."""
