"""Routed layers: finding them, reading their choice of experts, and describing how they choose."""
