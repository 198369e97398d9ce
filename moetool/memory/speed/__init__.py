"""Lower bounds on the time that a GPU needs for a prompt and for a token."""
