"""Fits and limits: which GPUs hold a scenario, and the largest scenarios that one GPU holds."""
