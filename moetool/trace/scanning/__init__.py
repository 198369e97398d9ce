"""Rows of a trace as numbers, and the order that they come in."""
