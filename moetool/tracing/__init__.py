"""Prompts and a model in, the routing decisions of the running model out."""
