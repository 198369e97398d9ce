"""Results from a trace: a package for each question."""
