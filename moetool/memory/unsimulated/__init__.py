"""Estimates without a simulated run: for TPUs, and of systems known from reports."""
