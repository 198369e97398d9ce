"""Checkpoints that are not folders in the format of Hugging Face: recognised, named and read."""
