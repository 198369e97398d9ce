"""The memory of several GPUs that share a model: measured, and estimated."""
