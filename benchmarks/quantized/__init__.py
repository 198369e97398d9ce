"""Models with quantized experts: their memory, their speed, and their routing."""
