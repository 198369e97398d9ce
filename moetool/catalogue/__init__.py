"""Published data that ships with moetool: models, GPUs, and the demonstration checkpoint."""
