"""Runs of one of several processes that share a model."""
