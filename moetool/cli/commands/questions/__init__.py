"""Commands that answer questions about a trace."""
