"""Traces read back, checked and counted."""
