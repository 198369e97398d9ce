"""Measurements, run by hand: what moetool costs, as ratios from one run."""
