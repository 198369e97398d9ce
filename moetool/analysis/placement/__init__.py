"""Placement of experts on GPUs: by load, and by which experts run together."""
