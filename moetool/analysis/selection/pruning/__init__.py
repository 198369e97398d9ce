"""Experts to drop from each layer."""
