"""Answers to questions about a trace, wherever its rows are."""
