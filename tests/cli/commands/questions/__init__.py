"""Commands that answer questions about a trace, as users run them."""
