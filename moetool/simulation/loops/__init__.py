"""Loops whose iterations do the same work, of which a few run."""
