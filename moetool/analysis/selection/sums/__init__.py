"""Sums over prompts that scores are made of, and samples of weights."""
