"""Floating-point operations of a forward pass."""
