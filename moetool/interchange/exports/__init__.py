"""Placements of experts, written as the files that serving engines load."""
