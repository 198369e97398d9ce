"""Load tables: how often each expert was chosen, without the tokens that chose it."""
