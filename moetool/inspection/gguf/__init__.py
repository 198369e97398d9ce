"""The inspection of GGUF models, and the facts that only their files have."""
