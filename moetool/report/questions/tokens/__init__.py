"""Pages on single tokens and single experts."""
