"""Tests of the memory of serving engines."""
