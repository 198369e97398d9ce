"""A skeleton's own forward, run on torch's meta device: its FLOPs and memory, without weights."""
