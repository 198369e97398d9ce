"""Faults of the files of a trace in words: where they are, and what is wrong."""
