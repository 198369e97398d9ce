"""The same tokens under two models, quantizations, checkpoints or engines."""
