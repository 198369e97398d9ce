"""Blocks that call each expert as a separate module, read by running them again."""
