"""Commands that make, check and join traces."""
