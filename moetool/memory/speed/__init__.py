"""The least time that a GPU leaves for a prompt and for a token."""
