"""Models whose weights bitsandbytes quantizes: their layers on the meta device, and what those allocate."""
