"""Placements by load and by co-activation, and their scores, against plain Python."""
