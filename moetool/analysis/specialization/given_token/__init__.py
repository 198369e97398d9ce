"""Specialization that is left when the token id is known, in a sample of prompts."""
