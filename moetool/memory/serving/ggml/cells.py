"""The cells that llama.cpp reserves in its cache (llama-kv-cache.cpp, llama-kv-cache-iswa.cpp)."""

from __future__ import annotations

# Cells of a cache are reserved in multiples of it.
_CELLS = 256


def pad_cells(number: int) -> int:
    """Return a number of cells as a multiple of 256."""
    return -(-number // _CELLS) * _CELLS


def count_window_cells(cells: int, *, window: int, ubatch: int) -> int:
    """Return the cells of each sequence in sliding-window layers: a window and one micro-batch."""
    return pad_cells(min(cells, window + ubatch))
