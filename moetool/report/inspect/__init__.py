"""Reports of `moetool inspect`."""
