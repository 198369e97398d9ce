"""Models loaded with quantized weights, their routed experts included."""
