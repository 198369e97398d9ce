"""Load a checkpoint and run it over batches of prompts."""
