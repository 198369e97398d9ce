"""Speed and figures of the questions to a trace."""
