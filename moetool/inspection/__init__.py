"""The inspection of a model: everything that its configuration and its files show."""
