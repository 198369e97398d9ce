"""Balance: how evenly the experts of each layer share the work."""
