"""Prompts: read from files, checked, and turned into token ids."""
