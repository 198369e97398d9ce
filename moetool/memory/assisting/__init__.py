"""Assistants that draft tokens for `generate`."""
