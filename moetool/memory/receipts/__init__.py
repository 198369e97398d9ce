"""Receipts: predictions and measurements of runs, kept in files."""
