"""Measurements: the figures, the times of phases, and the machine that they are from."""
