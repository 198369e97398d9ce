"""Decisions that a block passes to its experts, proven by running these with other numbers."""
