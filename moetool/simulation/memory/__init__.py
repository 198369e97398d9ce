"""The memory of a run: every allocation, and the memory that torch's allocator reserves for it."""
