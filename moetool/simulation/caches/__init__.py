"""Caches of `generate`, as they run without data."""
