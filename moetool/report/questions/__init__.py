"""Pages of the questions to a trace."""
