"""The memory of a run: every allocation, and what torch's allocator takes for them."""
