"""Decisions read from the operations in which tokens meet the weights of experts."""
