"""Hooks on a running model: the decisions of its routed layers, call by call."""
