"""Parameters of GGUF files, and the names of their tensors."""
