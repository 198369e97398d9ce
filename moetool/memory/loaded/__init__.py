"""A model as a scenario loads it: its skeleton, and the bytes of its weights."""
