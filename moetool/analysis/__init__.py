"""From a trace to results, one file a question."""
