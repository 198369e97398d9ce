"""Options of `moetool memory-estimate`."""
