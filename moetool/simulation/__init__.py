"""A skeleton's own forward, run on torch's meta device: what it computes, without weights."""
