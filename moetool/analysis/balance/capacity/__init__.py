"""Experts of limited capacity: what they would drop, batch by batch."""
