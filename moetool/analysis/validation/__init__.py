"""Whether a trace is sound, what it is, and what it can answer."""
