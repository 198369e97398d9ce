"""Whole prompts of a trace, few enough to look at each token."""
