"""What is published, as data: model names and the demonstration checkpoint."""
