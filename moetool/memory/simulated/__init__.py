"""Simulated runs of a model's scenarios."""
