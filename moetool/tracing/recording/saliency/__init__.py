"""Norms of what each expert returned for the tokens that chose it, before weighting."""
