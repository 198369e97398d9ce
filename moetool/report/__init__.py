"""Render finished results as text, JSON and CSV. Nothing is computed here."""
