"""Decoding steps of a long generation: derived from a few, and replayed together."""
