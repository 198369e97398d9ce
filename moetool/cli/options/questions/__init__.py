"""Options of the questions to a trace, by command."""
