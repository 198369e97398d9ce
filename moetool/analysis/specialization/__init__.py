"""Specialization: how much experts differ between domains and between tokens."""
