"""Traced runs: their speed, what recording adds, and whether a killed run can be continued."""
