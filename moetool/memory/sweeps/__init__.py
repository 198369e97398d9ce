"""Estimates of many scenarios, side by side in several processes."""
