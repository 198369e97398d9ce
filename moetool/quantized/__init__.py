"""Stand-ins on the meta device for bitsandbytes' quantized layers, with the same allocations."""
