"""Read what a configuration states: its quantization, how weights are packed, top-k."""
