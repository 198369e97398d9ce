"""Sentences that a reader of an estimate has to know."""
