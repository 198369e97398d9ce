"""Train the demonstration checkpoint."""
