"""Scripts for those who work on moetool."""
