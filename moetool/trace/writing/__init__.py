"""Writing a trace that appears complete or not at all."""
