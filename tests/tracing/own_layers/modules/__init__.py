"""Layers and models of one's own, as people write them."""
