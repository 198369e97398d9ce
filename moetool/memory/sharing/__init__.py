"""A model's weights shared among several GPUs."""
