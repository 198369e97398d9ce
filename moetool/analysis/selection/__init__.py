"""Experts to train or to drop, chosen by what a trace says of them."""
