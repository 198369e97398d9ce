"""Text and protocols that files of a trace are made of."""
