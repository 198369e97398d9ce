"""What a model is made of, read off its own modules."""
