"""Results from a trace: one file for each question."""
