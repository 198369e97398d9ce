"""The anatomy of a model, read off its modules or off the headers of its files."""
