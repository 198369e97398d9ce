"""Memory that a model needs to run, and the GPUs that it fits on."""
