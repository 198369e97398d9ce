"""Declare the commands' options as annotated types, and parse their values."""
