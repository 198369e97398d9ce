"""The allocator that replays allocations, and pools that see the same requests again and again."""
