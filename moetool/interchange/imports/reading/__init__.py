"""Reading of foreign files: text, JSON, arrays, GGUF and files of torch, however damaged."""
