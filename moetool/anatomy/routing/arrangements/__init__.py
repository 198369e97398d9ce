"""Experts in any arrangement, whose routing only their operations show."""
