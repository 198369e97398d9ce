"""Render the results of `moetool memory-estimate`."""
