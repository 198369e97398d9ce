"""A whole run on each of several GPUs."""
