"""A checkpoint loaded and run over batches of prompts."""
