"""The tokens and layers that two traces share."""
