"""Confidence: how much of a decision's weight the first choice has."""
