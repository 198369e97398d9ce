"""Reports of `moetool memory-estimate`."""
