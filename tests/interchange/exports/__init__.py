"""Placements, read back by the rules of the engines that load them."""
