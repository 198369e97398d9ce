"""Estimates of memory against measurements and other tools."""
