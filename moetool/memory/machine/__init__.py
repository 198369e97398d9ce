"""This machine's GPU and memory, as its driver and system report them."""
