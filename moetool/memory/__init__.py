"""What a model needs to run, and what it fits on."""
