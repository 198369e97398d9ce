"""Compare a model on one GPU with the same model shared by two."""
