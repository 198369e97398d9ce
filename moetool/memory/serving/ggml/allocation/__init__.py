"""The memory of a graph: the devices of its tensors, and their places there."""
