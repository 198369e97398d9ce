"""Loads of single prompts: what is high in all of them, and what only these prompts make so."""
