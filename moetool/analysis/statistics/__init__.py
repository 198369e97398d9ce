"""Arithmetic that several questions share: samples, held-out halves, intervals over prompts."""
