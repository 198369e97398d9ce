"""Explain command lines that can't be carried out as they were typed."""
