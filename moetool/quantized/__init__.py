"""Weights that bitsandbytes quantizes: layers on the meta device that allocate as its own do."""
