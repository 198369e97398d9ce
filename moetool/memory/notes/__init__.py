"""Caveats for the reader of an estimate."""
