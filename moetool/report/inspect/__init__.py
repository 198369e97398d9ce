"""Render the results of `moetool inspect`."""
