"""Simulate caches of experts, step by step."""
