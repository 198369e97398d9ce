"""Routed layers: where they are, how they choose experts, and how their choice can be read."""
