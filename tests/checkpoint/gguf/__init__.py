"""GGUF files: headers of whole, split and broken ones."""
