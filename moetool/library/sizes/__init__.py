"""Sizes of a model, for questions to a trace that does not have them."""
