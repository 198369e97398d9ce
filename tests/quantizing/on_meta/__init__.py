"""Tests of quantized models without data."""
