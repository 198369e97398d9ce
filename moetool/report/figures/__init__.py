"""Figures of results, as matplotlib draws them. Each file draws one; none computes anything."""
