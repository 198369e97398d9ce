"""Inspections of GGUF models."""
