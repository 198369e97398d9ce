"""Implement the commands, one file each."""
