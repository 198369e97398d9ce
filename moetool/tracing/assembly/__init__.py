"""Rows made of the windows that a model has read, by several threads, in the order of the prompts."""
