"""Generation with an assistant, as transformers runs it."""
