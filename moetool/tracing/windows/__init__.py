"""Windows of batches: recorded calls in, rows of the trace out."""
