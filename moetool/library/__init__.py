"""Functions for notebooks and scripts that join recording, reading and analysis."""
