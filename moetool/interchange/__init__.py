"""Files of other tools: read as traces or load tables, and written for them to load."""
