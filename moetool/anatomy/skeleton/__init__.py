"""Skeletons: models as transformers builds them, without weights, and the parameters in them."""
