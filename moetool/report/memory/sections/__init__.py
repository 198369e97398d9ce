"""Sections of a page about memory."""
